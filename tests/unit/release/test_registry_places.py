"""The registry on disks that are full, read-only or gone, and on an object store."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ArtifactError, ConflictError, RegistryError
from pipeline.places import Place
from pipeline.release.line import Line, Moved
from pipeline.release.registry import OPTION, open_registry
from pipeline.release.verify import verify
from tests.unit.release import lines


def promote_to_3(line: Line) -> Moved:
    return line.promote(lines.ALIAS, 3, expected=2, why="a test")


class TestDisks:
    def test_a_read_only_one(self, history: Path, models: Path, small_disk: Callable[[str], Path]) -> None:
        disk = small_disk("size=4m")
        shutil.copytree(history, disk / "registry")
        line = open_registry(str(disk / "registry")).line()
        directory = lines.write_model(models / "5", 5)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for act in (
            lambda: promote_to_3(line),
            lambda: line.roll_back(lines.ALIAS, why="a test"),
            lambda: line.register(directory, {}, why="a test"),
            lambda: line.remove("1", why="a test"),
            lambda: lines.begin(str(disk / "registry"), models, "aaaaaaaa"),
        ):
            with pytest.raises(ArtifactError, match=f"{disk}.* cannot be written: Read-only file system; set {OPTION}"):
                act()
        assert line.alias(lines.ALIAS).version == 2
        assert verify(line).findings == ()

    def test_a_full_one(self, history: Path, models: Path, small_disk: Callable[[str], Path]) -> None:
        """Nothing that was half-written counts, and there is room again."""
        disk = small_disk("size=1m")
        shutil.copytree(history, disk / "registry")
        line = open_registry(str(disk / "registry")).line()
        big = lines.write_model(models / "big", 5, weights_bytes=1 << 20)
        files = lines.files_of(disk)
        for _ in range(2):
            with pytest.raises(
                ArtifactError, match=f"{disk}.* cannot be written: the disk is full; free some space or set"
            ):
                line.register(big, {}, why="a test")
        assert lines.files_of(disk) == files
        assert list(disk.rglob(".scratch/*")) == []
        assert verify(line).findings == ()
        assert lines.register(line, models, 6) == 5

    def test_no_room_for_a_record(self, history: Path, small_disk: Callable[[str], Path]) -> None:
        disk = small_disk("size=1m")
        shutil.copytree(history, disk / "registry")
        line = open_registry(str(disk / "registry")).line()
        with (disk / "filling").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        with pytest.raises(ArtifactError, match=f"{disk}.* cannot be written: the disk is full"):
            line.roll_back(lines.ALIAS, why="a test")
        assert line.alias(lines.ALIAS).version == 2
        (disk / "filling").unlink()
        assert line.roll_back(lines.ALIAS, why="a test").after == 1
        assert verify(line).findings == ()

    def test_one_that_vanished(self, local_line: Line, models: Path) -> None:
        directory = lines.write_model(models / "5", 5)
        root = Path(local_line.place.root).parent
        root.rename(root.parent / "elsewhere")
        for act in (
            lambda: promote_to_3(local_line),
            lambda: local_line.roll_back(lines.ALIAS, "2", why="a test"),
            lambda: open_registry(str(root)).line(),
        ):
            with pytest.raises(RegistryError, match=f"no (version|registry).* {root}"):
                act()
        root.write_text("")
        with pytest.raises(ArtifactError, match=r"Not a directory; set --registry\.root"):
            local_line.register(directory, {}, why="a test")
        with pytest.raises(ArtifactError, match=r"Not a directory; set --registry\.root"):
            promote_to_3(local_line)

    def test_a_file_in_place_of_the_root(self, models: Path, tmp_path: Path) -> None:
        root = tmp_path / "file"
        root.write_text("")
        for act in (lambda: lines.begin(str(root), models), lambda: open_registry(str(root)).line()):
            with pytest.raises(ArtifactError, match=rf"{root}.* cannot be \w+: Not a directory; set {OPTION}"):
                act()
        assert root.read_text() == ""

    @pytest.mark.skipif(not os.geteuid(), reason="root may read everything")
    def test_one_that_may_not_be_written(self, local_line: Line) -> None:
        audit = Path(local_line.place.root) / "audit"
        audit.chmod(0o500)
        try:
            with pytest.raises(ArtifactError, match=f"{audit} cannot be written: Permission denied; set {OPTION}"):
                promote_to_3(local_line)
        finally:
            audit.chmod(0o700)


class TestObjectStore:
    def test_moves(self, s3_url: str, models: Path, tmp_path: Path) -> None:
        line = lines.begin_with_history(f"{s3_url}/registry", models)
        assert lines.files_of(line.fetch(lines.ALIAS, tmp_path / "copies").path) == lines.files_of(models / "2")
        promote_to_3(line)
        with pytest.raises(ConflictError, match="somebody else has moved it"):
            line.promote(lines.ALIAS, 1, expected=2, why="a test")
        assert line.roll_back(lines.ALIAS, why="a test").after == 2
        assert line.roll_back(lines.ALIAS, "reference", why="a test").after == 0
        assert verify(line).findings == ()
        line.place.below("audit").remove("00000002.json")
        assert "record 2 is missing" in verify(line).findings

    def test_one_that_cannot_be_reached(self, s3_url: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import s3fs

        line = lines.begin(f"{s3_url}/registry", models)
        directory = lines.write_model(models / "5", 5)
        with socket.socket() as sock, monkeypatch.context() as patch:
            sock.bind(("127.0.0.1", 0))
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{sock.getsockname()[1]}")
            patch.setattr(s3fs.S3FileSystem, "cachable", False)  # another server is another client
            away = Line(Place(f"{s3_url}/registry", OPTION), lines.NAME)
            for act in (
                lambda: away.roll_back(lines.ALIAS, "reference", why="a test"),
                lambda: away.register(directory, {}, why="a test"),
            ):
                with pytest.raises(ArtifactError, match=f"{s3_url}.*the endpoint cannot be reached.*or set {OPTION}"):
                    act()
        assert (line.state().versions, line.trail.numbers()) == (1, [1])
