"""Logs are read once, line by line, whatever happens to the files."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.watch.logs import MAX_LINE_BYTES, Logs, Position, positions_from, read


class Reader:
    """Reads all there is, as the watch does, and keeps the positions; ``restart`` forgets all but those."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = Logs(path)
        self.positions: tuple[Position, ...] = ()
        self.lost = self.restarted = 0

    def restart(self) -> None:
        self.logs = Logs(self.path)
        self.positions = positions_from([one.as_dict() for one in self.positions])

    def all(self, most: int = 2) -> list[str]:
        found = []
        while True:
            look = self.logs.look(self.positions)
            self.positions = look.positions
            self.lost += look.lost_bytes
            self.restarted += look.restarted
            for place, position in enumerate(self.positions):
                lines, after = read(position, most) if position.there else ([], position)
                if after != position:
                    self.positions = (*self.positions[:place], after, *self.positions[place + 1 :])
                    found += ["too long" if one.text is None else one.text.decode() for one in lines]
                    break
            else:
                return found


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def test_only_whole_lines_of_files_that_grow(folder: Path) -> None:
    reader, path = Reader(folder), folder / "a.jsonl"
    assert reader.all() == []
    append(path, "1", "2", "3")
    with path.open("a") as file:
        file.write("ha")
    assert reader.all() == ["1", "2", "3"]
    reader.restart()
    assert reader.all() == []
    with path.open("a") as file:
        file.write("lf\n\n")
    assert reader.all() == ["half", ""]
    assert {one.line for one in reader.positions} == {5}


@pytest.mark.parametrize("restart", [False, True])
def test_a_renamed_file_goes_on_and_a_new_one_begins(folder: Path, restart: bool) -> None:
    reader, path = Reader(folder), folder / "a.jsonl"
    append(path, "1", "2")
    assert reader.all() == ["1", "2"]
    append(path, "3")
    path.rename(folder / "a.jsonl.1")
    append(path, "4")
    if restart:
        reader.restart()
    assert sorted(reader.all()) == ["3", "4"]
    assert reader.all() == []


def test_a_file_that_is_named_is_read_to_its_end_after_it_was_rotated(folder: Path) -> None:
    path = folder / "a.jsonl"
    append(folder / "a.jsonl.1", "old")
    append(path, "1")
    reader = Reader(path)
    assert reader.all() == ["1"], "what was rotated before is not asked for"
    append(path, "2")
    path.rename(folder / "a.jsonl.2")
    append(path, "3")
    assert sorted(reader.all()) == ["2", "3"]


def test_copied_and_cut_off(folder: Path) -> None:
    """As logrotate's copytruncate: the copy has another inode, the cut file the old one."""
    reader, path = Reader(folder), folder / "a.jsonl"
    append(path, "1", "2")
    assert reader.all() == ["1", "2"]
    append(path, "3")
    shutil.copy(path, folder / "a.jsonl.1")
    os.truncate(path, 0)
    append(path, "4", "5", "6", "7")
    assert sorted(reader.all()) == ["3", "4", "5", "6", "7"]
    assert reader.restarted == 1
    assert reader.lost == 0


def test_the_same_bytes_on_another_disk_are_known_again(folder: Path) -> None:
    reader, path = Reader(folder), folder / "a.jsonl"
    append(path, "1", "2")
    reader.all()
    shutil.copy(path, folder / "copy")
    path.unlink()
    (folder / "copy").rename(path)  # another inode, as after a restore
    append(path, "3")
    reader.restart()
    assert reader.all() == ["3"]


def test_equal_beginnings_are_not_the_same_file(folder: Path) -> None:
    reader = Reader(folder)
    append(folder / "a.jsonl", "same")
    append(folder / "b.jsonl", "same")
    assert reader.all() == ["same", "same"]
    os.link(folder / "a.jsonl", folder / "c.jsonl")
    assert reader.all() == [], "a second name of a file is not another file"


def test_what_went_away_unread_is_counted(folder: Path) -> None:
    reader, path = Reader(folder), folder / "a.jsonl"
    append(path, "1")
    reader.all()
    append(path, "22", "33")
    reader.logs.look(reader.positions)
    path.unlink()
    assert reader.all() == []
    assert reader.lost == 6
    assert reader.all() == []
    assert reader.lost == 6, "once"


def test_a_vanished_file_gives_nothing(tmp_path: Path) -> None:
    position = Position(str(tmp_path / "gone.jsonl"), 1, 1)
    assert read(position, 10) == ([], position)


def test_a_huge_line_is_skipped_in_bounded_memory(folder: Path) -> None:
    reader, path = Reader(folder), folder / "a.jsonl"
    append(path, "1", "x" * (3 * MAX_LINE_BYTES), "2")
    assert reader.all() == ["1", "too long", "2"]
    with path.open("a") as file:
        file.write("y" * (MAX_LINE_BYTES + 5))
    assert reader.all() == []
    reader.restart()
    append(path, "", "3")
    assert reader.all() == ["too long", "3"]


def test_which_files_are_logs(folder: Path) -> None:
    (folder / "day").mkdir()
    for name in ("a.jsonl", "day/b.jsonl.3", "c.jsonl.gz", ".d.jsonl", "e.txt", "f.jsonl.1.zst"):
        append(folder / name, name)
    assert sorted(Reader(folder).all()) == ["a.jsonl", "day/b.jsonl.3"]


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "none", "is not there"),
        (tmp_path / "pipe", "neither a file nor a directory"),
        (Path("s3://bucket/logs"), "is a URL"),
    ):
        with pytest.raises(DataError, match=said):
            Logs(path).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(folder: Path) -> None:
    (folder / "day").mkdir(mode=0o000)
    with pytest.raises(DataError, match="cannot be read"):
        Logs(folder).look(())
    folder.chmod(0o000)
    with pytest.raises(DataError, match="may not be read"):
        Logs(folder).check()
    folder.chmod(0o700)
