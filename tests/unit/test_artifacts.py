from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from pipeline.artifacts import MANIFEST, Store
from pipeline.errors import ArtifactError

KEY = "0123456789abcdef0123456789abcdef"
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's copies of remote artefacts go."""
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(str(tmp_path / "store [1] *"))
    else:
        yield Store(f"memory://{tmp_path.name}")
        fsspec.filesystem("memory").store.clear()


def commit(store: Store, text: str = "hello", stage: str = "data", key: str = KEY) -> None:
    with store.stage(stage, key, {"why": "test"}) as staging:
        (staging.path / "a.txt").write_text(text)
        (staging.path / "deep" / "er").mkdir(parents=True)
        (staging.path / "deep" / "er" / "b.bin").write_bytes(b"\0\1")
        staging.info["note"] = "two files"


def staged(store: Store) -> list[str]:
    """Names of what lies in the staging directory."""
    return [path.name for path in store._staging_root.iterdir()] if store._staging_root.exists() else []


class TestCommit:
    def test_what_was_staged_is_opened(self, store: Store) -> None:
        assert not store.exists("data", KEY)
        assert store.list("data") == []
        commit(store)
        artifact = store.open("data", KEY)
        assert (artifact.path / "a.txt").read_text() == "hello"
        assert (artifact.path / "deep" / "er" / "b.bin").read_bytes() == b"\0\1"
        assert artifact.info == {"note": "two files"}
        assert 0 <= artifact.seconds < 60
        assert store.list("data") == [KEY]
        assert staged(store) == []

    def test_the_manifest_says_what_the_key_was_made_of(self, store: Store) -> None:
        commit(store)
        manifest = store.manifest("data", KEY)
        assert manifest is not None
        assert manifest["made_from"] == {"why": "test"}
        assert sorted(manifest["files"]) == ["a.txt", "deep/er/b.bin"]

    def test_an_artefact_may_be_empty(self, store: Store) -> None:
        with store.stage("data", KEY, {}):
            pass
        assert store.open("data", KEY).info == {}

    def test_an_unknown_key(self, store: Store) -> None:
        assert store.manifest("data", KEY) is None
        with pytest.raises(KeyError):
            store.open("data", KEY)

    def test_an_exception_commits_nothing(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="stop"), store.stage("data", KEY, {}) as staging:  # noqa: PT012
            (staging.path / "a.txt").write_text("half")
            raise RuntimeError("stop")
        assert not store.exists("data", KEY)
        assert staged(store) == []

    def test_what_json_cannot_hold_commits_nothing(self, store: Store) -> None:
        with pytest.raises(ValueError, match="JSON"), store.stage("data", KEY, {"x": float("nan")}):
            pass
        assert not store.exists("data", KEY)

    def test_the_first_commit_of_a_key_stays(self, store: Store) -> None:
        with store.stage("data", KEY, {}) as staging:
            (staging.path / "a.txt").write_text("second")
            commit(store, "first")
        assert (store.open("data", KEY).path / "a.txt").read_text() == "first"
        assert staged(store) == []

    def test_discarded_and_made_again(self, store: Store) -> None:
        commit(store, "first")
        store.open("data", KEY)
        store.discard("data", KEY)
        store.discard("data", KEY)
        assert not store.exists("data", KEY)
        assert staged(store) == []
        commit(store, "second")
        assert (store.open("data", KEY).path / "a.txt").read_text() == "second"

    def test_many_threads_commit_one_key(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: commit(store, f"thread {number}"), range(8)))
        assert (store.open("data", KEY).path / "a.txt").read_text().startswith("thread")
        assert staged(store) == []


class TestDamage:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        commit(Store(str(tmp_path)))
        return tmp_path / "artifacts" / "data" / KEY

    def refuse(self, tmp_path: Path, message: str) -> None:
        with pytest.raises(ArtifactError, match=message) as caught:
            Store(str(tmp_path)).open("data", KEY)
        assert str(tmp_path / "artifacts" / "data" / KEY) in str(caught.value)

    @pytest.mark.parametrize("text", ["hullo", "hello!", ""])
    def test_other_content(self, tmp_path: Path, directory: Path, text: str) -> None:
        (directory / "a.txt").write_text(text)
        self.refuse(tmp_path, r"a\.txt differs from its manifest")

    def test_a_missing_file(self, tmp_path: Path, directory: Path) -> None:
        (directory / "deep" / "er" / "b.bin").unlink()
        self.refuse(tmp_path, r"deep/er/b\.bin is missing")

    def test_a_directory_in_place_of_a_file(self, tmp_path: Path, directory: Path) -> None:
        (directory / "a.txt").unlink()
        (directory / "a.txt").mkdir()
        self.refuse(tmp_path, r"a\.txt")

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", "{}", '{"files": [], "seconds": 1, "info": {}}', "\x00", '{"files": {"a": 1}}']
    )
    def test_a_torn_manifest(self, tmp_path: Path, directory: Path, text: str) -> None:
        (directory / MANIFEST).write_text(text)
        self.refuse(tmp_path, "manifest.json cannot be read")

    def test_without_a_manifest_there_is_no_artefact(self, tmp_path: Path, directory: Path) -> None:
        (directory / MANIFEST).unlink()
        store = Store(str(tmp_path))
        assert not store.exists("data", KEY)
        commit(store, "again")
        assert (store.open("data", KEY).path / "a.txt").read_text() == "again"
        assert staged(store) == []

    def test_a_damaged_remote_artefact_is_made_again(self, tmp_path: Path) -> None:
        store, files = Store(f"memory://{tmp_path.name}"), fsspec.filesystem("memory")
        commit(store, "first")
        [path] = files.glob(f"/{tmp_path.name}/artifacts/data/{KEY}/*/a.txt")
        files.pipe_file(path, b"longer than it was")
        with pytest.raises(ArtifactError, match="differs"):
            store.open("data", KEY)
        store.discard("data", KEY)
        assert not files.find(f"/{tmp_path.name}/artifacts/data")
        commit(store, "second")
        assert (store.open("data", KEY).path / "a.txt").read_text() == "second"


STAGES_AND_WAITS = """
import sys, time
from pipeline.artifacts import Store
with Store(sys.argv[1]).stage("data", sys.argv[2], {}) as staging:
    (staging.path / "a.txt").write_text("half")
    print("staged", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def staging_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES_AND_WAITS, str(tmp_path), KEY],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    yield process
    process.kill()
    process.wait()


class TestCrash:
    def test_a_killed_job_leaves_nothing(self, tmp_path: Path, staging_process: subprocess.Popen[str]) -> None:
        living = Store(str(tmp_path))
        assert len(staged(living)) == 2  # the directory and its lock: a job that lives is not swept
        staging_process.send_signal(signal.SIGKILL)
        staging_process.wait()
        assert not living.exists("data", KEY)
        assert len(staged(living)) == 2
        swept = Store(str(tmp_path))
        assert staged(swept) == []
        assert swept.list("data") == []
        commit(swept)
        assert swept.open("data", KEY)

    def test_a_living_job_goes_on_after_another_started(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        with store.stage("data", KEY, {}) as staging:
            (staging.path / "a.txt").write_text("whole")
            Store(str(tmp_path))
        assert (store.open("data", KEY).path / "a.txt").read_text() == "whole"

    @pytest.mark.parametrize("name", ["rename", "write_bytes"])
    def test_a_commit_that_fails_midway(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        store = Store(str(tmp_path))

        def full(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(ArtifactError, match="disk is full"):  # noqa: PT012
            patch.setattr(Path, name, full)
            commit(store)
        assert not store.exists("data", KEY)
        assert staged(store) == []


class TestRefusals:
    def test_a_full_disk(self, small_disk: Callable[[str], Path]) -> None:
        small = small_disk("size=128k")
        store = Store(str(small))
        with pytest.raises(ArtifactError, match="disk is full; free some space or set --storage"):  # noqa: SIM117
            with store.stage("data", KEY, {}) as staging:
                (staging.path / "big").write_bytes(bytes(2**20))
        assert staged(store) == []
        assert not store.exists("data", KEY)
        commit(store)
        assert store.open("data", KEY)
        (small / "filler").write_bytes(bytes(store.free_bytes() or 0))
        with pytest.raises(ArtifactError, match="disk is full"):
            store.put_if_absent("artifacts/x", bytes(2**16))
        assert not list(small.rglob("*.tmp"))

    def test_a_read_only_disk(self, small_disk: Callable[[str], Path]) -> None:
        root = small_disk("ro")
        for create in (True, False):
            with pytest.raises(ArtifactError, match=r"Read-only file system|Permission denied"):
                Store(str(root / "runs"), create=create)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_an_unwritable_directory(self, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ArtifactError, match="Permission denied; set --storage"):
            Store(str(tmp_path / "locked" / "runs"))

    def test_a_file_in_place_of_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ArtifactError, match=r"file.*set --storage"):
            Store(str(tmp_path / "file"))

    def test_an_unknown_protocol(self) -> None:
        with pytest.raises(ArtifactError, match="nosuch"):
            Store("nosuch://bucket/runs")

    def test_a_stage_that_may_not_read_its_input_does_not_blame_the_storage(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        denied = PermissionError(errno.EACCES, "Permission denied", "/data/rows.jsonl")
        with pytest.raises(PermissionError, match=r"rows\.jsonl"), store.stage("data", KEY, {}):
            raise denied

    def test_a_stage_that_may_not_write_does(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        with pytest.raises(ArtifactError, match="cannot be written: Permission denied; set --storage"):  # noqa: SIM117
            with store.stage("data", KEY, {}) as staging:
                raise PermissionError(errno.EACCES, "Permission denied", str(staging.path / "a.txt"))

    def test_looking_writes_nothing(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path / "not" / "there"), create=False)
        assert not store.exists("data", KEY)
        assert store.list("data") == []
        assert (store.free_bytes() or 0) > 0
        assert list(tmp_path.iterdir()) == []


def _put(root: str, number: int, start: float) -> bool:
    store = Store(root)
    time.sleep(max(0.0, start - time.time()))
    return store.put_if_absent("once", str(number).encode() * 1000)


def _count_up(root: str, times: int) -> int:
    """Adds one to a counter ``times`` times; returns how often somebody else was faster."""
    store, lost = Store(root), 0
    for _ in range(times):
        while True:
            generation, data = store.read_pointer("count")
            if store.compare_and_swap("count", generation, str(int(data or b"0") + 1).encode()):
                break
            lost += 1
    return lost


class TestPointers:
    def test_put_if_absent(self, store: Store) -> None:
        assert store.put_if_absent("a/b", b"first")
        assert not store.put_if_absent("a/b", b"second")
        assert store._place("a").read("b") == b"first"

    def test_generations(self, store: Store) -> None:
        assert store.read_pointer("best") == (0, None)
        assert store.compare_and_swap("best", 0, b"one")
        assert not store.compare_and_swap("best", 0, b"late")
        assert not store.compare_and_swap("best", 5, b"early")
        assert store.read_pointer("best") == (1, b"one")
        for generation in range(1, 12):
            assert store.compare_and_swap("best", generation, str(generation).encode())
        assert store.read_pointer("best") == (12, b"11")

    def test_what_a_killed_writer_left_is_no_generation(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        store.compare_and_swap("best", 0, b"one")
        (tmp_path / "pointers" / "best" / "00000002.1a2b3c4d.tmp").write_bytes(b"to")
        assert store.read_pointer("best") == (1, b"one")
        assert store.compare_and_swap("best", 1, b"two")

    def test_processes_that_race(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        with SPAWN.Pool(4) as pool:
            start = time.time() + 0.5
            won = pool.starmap(_put, [(root, number, start) for number in range(4)])
            pool.starmap(_count_up, [(root, 25)] * 4)
        assert sum(won) == 1
        assert (tmp_path / "once").read_bytes() == str(won.index(True)).encode() * 1000
        assert Store(root).read_pointer("count") == (100, b"100")
        assert not list(tmp_path.rglob("*.tmp"))

    def test_processes_that_commit_one_key(self, tmp_path: Path) -> None:
        with SPAWN.Pool(4) as pool:
            pool.starmap(_commit_as, [(str(tmp_path), number) for number in range(8)])
        store = Store(str(tmp_path))
        artifact = store.open("data", KEY)
        assert json.loads((artifact.path / MANIFEST).read_text())["made_from"] == {"why": "test"}
        assert staged(store) == []


def _commit_as(root: str, number: int) -> None:
    commit(Store(root), f"process {number}")
