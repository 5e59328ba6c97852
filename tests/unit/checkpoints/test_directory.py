"""What is in a run directory, what verifies, what is refused, and what a crash or a full disk leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import IDENTITY, run_directory, write_checkpoint

from pipeline.checkpoints.directory import Checkpoint, Damage, RunDirectory
from pipeline.checkpoints.journal import Journal
from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {text}")


class TestNewest:
    def test_nothing_there(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path / "run", IDENTITY)
        assert directory.newest(silent) is None
        directory.prepare()
        assert directory.newest(silent) is None

    def test_the_highest_step(self, tmp_path: Path) -> None:
        found = run_directory(tmp_path / "run", (3, 9, 10)).newest(silent)
        assert found is not None
        assert found.step == 10

    def test_a_damaged_one_is_named_and_passed_over(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (3, 9))
        file = directory.path / "step-00000009" / "rank-00000.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 4
        file.write_bytes(data)
        said: list[str] = []
        found = directory.newest(said.append)
        assert found is not None
        assert found.step == 3
        assert "step-00000009" in said[0]
        assert "rank-00000.safetensors has changed" in said[0]

    def test_all_damaged(self, tmp_path: Path) -> None:
        """Nothing begins anew over what may be worth more than the time."""
        directory = run_directory(tmp_path / "run", (3, 9))
        (directory.path / "step-00000009" / "checkpoint.json").unlink()
        for path in (directory.path / "step-00000003").iterdir():
            path.unlink()  # an empty directory
        with pytest.raises(ArtifactError, match="can be used") as caught:
            directory.newest(lambda text: None)
        assert "step-00000009 is damaged (checkpoint.json is missing)" in str(caught.value)
        assert "step-00000003 is damaged (checkpoint.json is missing)" in str(caught.value)
        assert "remove the directory to train from the start" in str(caught.value)

    @pytest.mark.parametrize("name", ["rank-00000.safetensors", "checkpoint.json"])
    def test_a_file_that_the_disk_does_not_give(self, tmp_path: Path, name: str) -> None:
        """A directory in its place answers as a bad sector does: with an error of the system."""
        directory = run_directory(tmp_path / "run", (3, 9))
        file = directory.path / "step-00000009" / name
        file.unlink()
        file.mkdir()
        found = directory.verify(9)
        assert isinstance(found, Damage)
        assert name in str(found)
        newest = directory.newest(lambda text: None)
        assert newest is not None
        assert newest.step == 3

    def test_half_written(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (3,))
        half = directory.path / "step-00000005"
        half.mkdir()
        (half / "rank-00000.safetensors").write_bytes(b"x")
        said: list[str] = []
        found = directory.newest(said.append)
        assert found is not None
        assert found.step == 3
        assert "step-00000005 is damaged (checkpoint.json is missing)" in said[0]

    def test_metrics_are_part_of_it(self, tmp_path: Path) -> None:
        """The file that people follow may be anything, or gone."""
        directory = run_directory(tmp_path / "run", (3, 9))
        (directory.path / "metrics.jsonl").unlink()
        found = directory.newest(silent)
        assert found is not None
        assert [json.loads(line)["step"] for line in found.rows().splitlines()] == list(range(1, 10))

    def test_a_checkpoint_under_another_name(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (3,))
        (directory.path / "step-00000003").rename(directory.path / "step-00000007")
        found = directory.verify(7)
        assert isinstance(found, Damage)
        assert "that of step 3" in str(found)

    @pytest.mark.parametrize("name", ["checkpoint.json", "rank-00000.safetensors", "metrics.jsonl"])
    def test_any_flipped_byte(self, tmp_path: Path, name: str) -> None:
        directory = run_directory(tmp_path / "run", (2,))
        file = directory.path / "step-00000002" / name
        data = file.read_bytes()
        rng = random.Random(0)
        for place in {0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(150))}:
            changed = bytearray(data)
            changed[place] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            found = directory.verify(2)
            assert isinstance(found, Damage), place
            assert name in str(found)
        file.write_bytes(data)
        assert isinstance(directory.verify(2), Checkpoint)


class TestRefusals:
    def test_another_run_names_the_differences(self, tmp_path: Path) -> None:
        run_directory(tmp_path / "run", (3,))
        other = IDENTITY | {"reference": "c" * 32, "options": {"train": {"optim": {"lr": 0.002}, "seed": 0}}}
        for act in (RunDirectory.prepare, lambda one: one.newest(silent)):
            with pytest.raises(ArtifactError) as caught:
                act(RunDirectory(tmp_path / "run", other))
            message = str(caught.value)
            assert "train.optim.lr 0.001 there, 0.002 here" in message
            assert "the reference bbbbbbbbbbbb there, cccccccccccc here" in message
            assert "seed" not in message
            assert "the model" not in message

    @pytest.mark.parametrize("name", ["model", "data", "reference"])
    def test_a_single_checkpoint_of_another_run(self, tmp_path: Path, name: str) -> None:
        """Copied in among the run's own."""
        theirs = run_directory(tmp_path / "theirs", (9,), IDENTITY | {name: "f" * 32})
        ours = run_directory(tmp_path / "ours", (3,))
        shutil.copytree(theirs.path / "step-00000009", ours.path / "step-00000009")
        with pytest.raises(ArtifactError, match=f"step-00000009 belongs to another run: the {name} ffffffffffff"):
            ours.newest(silent)

    def test_a_newer_format(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (3,))
        manifest = directory.path / "step-00000003" / "checkpoint.json"
        manifest.write_bytes(seal(unseal(manifest.read_bytes()) | {"format": 3}))
        with pytest.raises(ArtifactError, match="written in format 3, this version reads 2"):
            directory.newest(silent)

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(ArtifactError, match=r"Not a directory|File exists"):
            RunDirectory(tmp_path / "run", IDENTITY).prepare()

    def test_two_writers(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run")
        other = RunDirectory(directory.path, IDENTITY)
        refused = pytest.raises(ArtifactError, match="being written by another process")
        with directory.writing(0.1), refused, other.writing(0.2):
            pass
        with directory.writing(0.1):
            pass

    def test_a_directory_that_disappears(self, tmp_path: Path) -> None:
        """Nothing is made in its place: a disk that is not mounted any more must not be written below its mount."""
        directory = run_directory(tmp_path / "run", (3,))
        directory.path.rename(tmp_path / "away")
        for act in (lambda: directory.staging(4), lambda: directory.note_skipped(4, {})):
            with pytest.raises(ArtifactError, match="has disappeared"):
                act()
        assert not directory.path.exists()

    def test_a_full_disk(self, small_disk: Callable[[str], Path]) -> None:
        disk = small_disk("size=512k")
        directory = run_directory(disk / "run", (3,))
        before = directory.verify(3)
        (disk / "filler").write_bytes(bytes(100_000))
        refused = pytest.raises(ArtifactError, match="disk is full; free some space or set --storage")
        with refused, directory.refusals("written"):
            write_checkpoint(directory, 4, {"a": (100_000,)}, [{"a": (0, 100_000)}])
        assert directory.verify(3) == before
        with directory.writing(1.0):  # the next worker clears what lies half-written
            write_checkpoint(directory, 4, {"a": (10,)}, [{"a": (0, 10)}])
        assert isinstance(directory.verify(4), Checkpoint)


class TestChanges:
    def test_a_commit_takes_the_place_of_a_damaged_one(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (3,))
        (directory.path / "step-00000003" / "checkpoint.json").write_text("{}")
        write_checkpoint(directory, 3, {"a": (2,)}, [{"a": (0, 2)}])
        assert isinstance(directory.verify(3), Checkpoint)

    def test_damaged_ones_of_later_steps_do_not_outlive_a_commit(self, tmp_path: Path) -> None:
        """Or pruning would keep them, as the newest, and remove every good one until the run is past them."""
        directory = run_directory(tmp_path / "run", (3, 40, 80))
        for step in (40, 80):
            (directory.path / f"step-{step:08d}" / "metrics.jsonl").write_bytes(b"")
        found = directory.newest(lambda text: None)
        assert found is not None
        assert found.step == 3
        write_checkpoint(directory, 4, {"a": (2,)}, [{"a": (0, 2)}])
        directory.prune(2)
        assert directory.steps() == [3, 4]
        found = directory.newest(silent)
        assert found is not None
        assert found.step == 4

    def test_prune(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (2, 5, 6, 7, 8))
        directory.prune(2, also_every=5)
        assert directory.steps() == [5, 7, 8]
        directory.prune(1)
        assert directory.steps() == [8]
        assert directory.newest(silent) is not None

    def test_roll_back(self, tmp_path: Path) -> None:
        directory = run_directory(tmp_path / "run", (5, 6, 8))
        good = directory.verify(5)
        assert isinstance(good, Checkpoint)
        directory.roll_back(good, {"loop": {"step": 5, "changed": True}}, {"split": "roll_back"})
        found = directory.newest(silent)
        assert found is not None
        assert (found.step, found.manifest["loop"]["changed"]) == (5, True)
        rows = [json.loads(line) for line in found.rows().splitlines()]
        assert [row["split"] for row in rows] == ["train"] * 5 + ["roll_back"]

    def test_killed_at_any_moment_of_a_commit(self, tmp_path: Path) -> None:
        """SIGKILL while checkpoints are committed and pruned without end: the directory is good after each."""
        directory = run_directory(tmp_path / "run", (1,))
        context = multiprocessing.get_context("fork")
        rng = random.Random(1)
        seen = set()
        for _ in range(25):
            newest = directory.newest(silent)
            assert newest is not None, "what was committed is gone"
            seen.add(newest.step)
            child = context.Process(target=_commit_for_ever, args=(directory, newest.step))
            child.start()
            time.sleep(0.01 + 0.05 * rng.random())
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        assert len(seen) > 10


def _commit_for_ever(directory: RunDirectory, step: int) -> None:
    while True:
        step += 1
        with directory.writing(1.0):
            write_checkpoint(directory, step, {"a": (3,)}, [{"a": (0, 3)}])
            directory.prune(2)


class TestJournal:
    def test_it_goes_on_from_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        first = Journal(path)
        first.append({"step": 1})
        rows = first.rows()
        first.append({"step": 2, "lost": True})
        first.close()
        second = Journal(path, rows)
        second.append({"step": 2})
        assert path.read_bytes() == second.rows(), "people see every row at once"
        second.close()
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]

    def test_no_row_that_is_not_json(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            Journal(tmp_path / "metrics.jsonl").append({"loss": float("nan")})
