from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.claims import claim, sweep_claims
from pipeline.errors import ArtifactError

HOLD = """
import sys, time
from pathlib import Path
from pipeline.claims import claim
with claim(Path(sys.argv[1]), "align-k", lambda owner: print("waits", flush=True)):
    print("holds", flush=True)
    sys.stdin.read()
"""

TAKE_TURNS = """
import os, sys
from pathlib import Path
from pipeline.claims import claim
folder = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with claim(folder / "claims", "align-k", lambda owner: None):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if anybody else is inside
        with open(folder / "turns", "a") as turns:
            turns.write("x")
        os.unlink(folder / "inside")
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the claim ``align-k`` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_says_who_holds_it_and_leaves_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    with claim(tmp_path / "claims", "align-k", told.append):
        assert names(tmp_path / "claims") == ["align-k.json", "align-k.lock"]
        owner = json.loads((tmp_path / "claims" / "align-k.json").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
        assert owner["since"].endswith("+00:00")
        with claim(tmp_path / "claims", "align-l", told.append):
            pass
    assert names(tmp_path / "claims") == []
    assert told == []
    with pytest.raises(RuntimeError, match="stop"), claim(tmp_path / "claims", "align-k", told.append):
        raise RuntimeError("stop")
    assert names(tmp_path / "claims") == []


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_the_next_one_is_told_who_holds_it_and_waits(tmp_path: Path, holder: subprocess.Popen[str], end: str) -> None:
    told: list[tuple[str, float]] = []

    def waiting(owner: str) -> None:
        told.append((owner, time.monotonic()))
        time.sleep(0.5)
        if end == "killed":
            holder.send_signal(signal.SIGKILL)
        else:
            assert holder.stdin is not None
            holder.stdin.close()

    with claim(tmp_path, "align-k", waiting):
        held = time.monotonic()
        assert json.loads((tmp_path / "align-k.json").read_text())["pid"] == os.getpid()
    [(owner, asked)] = told
    host = re.escape(socket.gethostname())
    assert re.fullmatch(rf"process {holder.pid} on {host} since \d\d:\d\d:\d\d UTC", owner)
    assert 0.5 <= held - asked < 10
    assert names(tmp_path) == []


def test_an_owner_of_another_day_and_one_that_says_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    def told_with(text: str) -> str:
        (tmp_path / "align-k.json").write_text(text)
        told: list[str] = []

        def waiting(owner: str) -> None:
            told.append(owner)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), claim(tmp_path, "align-k", waiting):
            pass
        return told[0]

    old = json.dumps({"pid": 7, "host": "node-3", "since": "2024-02-29T23:59:58+00:00"})
    assert told_with(old) == "process 7 on node-3 since 2024-02-29 23:59:58 UTC"
    for text in ("", "{", "[]", '{"pid": 7}', '{"pid": 7, "host": "a", "since": "noon"}'):
        assert told_with(text) == "a process that did not say who it is"


def test_one_at_a_time_although_the_files_come_and_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path), "25"]
    others = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        while any(process.poll() is None for process in others):
            sweep_claims(tmp_path / "claims")
        for process in others:
            assert process.wait() == 0, process.communicate()[1]
    finally:
        for process in others:
            process.kill()
            process.communicate()
    assert (tmp_path / "turns").read_text() == "x" * 75
    assert names(tmp_path / "claims") == []


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with claim(tmp_path, "align-k", lambda owner: None):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_what_killed_holders_left_is_swept_and_what_is_held_is_not(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    for name in ("sft-k.lock", "sft-k.json", "sft-k.json.tmp"):
        (tmp_path / name).write_text("")
    sweep_claims(tmp_path)
    assert names(tmp_path) == ["align-k.json", "align-k.lock"]
    holder.kill()
    holder.wait()
    assert names(tmp_path) == ["align-k.json", "align-k.lock"]
    sweep_claims(tmp_path)
    assert names(tmp_path) == []
    sweep_claims(tmp_path / "not there")


def test_a_file_system_without_locks_has_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path, "align-k", pytest.fail), claim(tmp_path, "align-k", pytest.fail):
        pass
    assert names(tmp_path) == []


class TestOfAStore:
    def test_a_local_one_claims_below_its_root(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        with store.claim("align", "k", pytest.fail):
            assert names(tmp_path / "claims") == ["align-k.json", "align-k.lock"]
            Store(str(tmp_path))  # another job begins, and sweeps
            assert names(tmp_path / "claims") == ["align-k.json", "align-k.lock"]
        assert names(tmp_path / "claims") == []

    def test_a_remote_one_claims_by_a_lease(self) -> None:
        store, told = Store(f"memory://claims-{uuid.uuid4().hex}"), threading.Event()
        order: list[str] = []

        def second() -> None:
            with store.claim("align", "k", lambda owner: told.set()):
                order.append("second")

        with store.claim("align", "k", pytest.fail), store.claim("align", "other", pytest.fail):
            waiting = threading.Thread(target=second)
            waiting.start()
            assert told.wait(30)
            order.append("first")
        waiting.join(30)
        assert order == ["first", "second"]

    def test_what_is_in_the_way_is_explained(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        (tmp_path / "claims").write_text("")
        with pytest.raises(ArtifactError, match=r"cannot be written: .*--storage"), store.claim("a", "k", pytest.fail):
            pass
