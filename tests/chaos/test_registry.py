"""The registry under a thousand interleavings of killed processes, every byte of it changed, and its speed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.release.registry import open_registry
from pipeline.release.verify import verify
from tests.unit.release import interleavings, killing, lines

REPOSITORY = Path(__file__).parents[2]
WEIGHTS_BYTES = 4 * 135_000_000


def print_table(outcome: dict, operations: tuple[str, ...]) -> None:
    """Where the kills landed, and what the processes came to."""
    places = Counter[tuple[str, str]]()
    for key, count in outcome["kills"].items():
        what, _, where = key.rpartition(" in ")
        places[where, what] += count
    rows = ["versions", "models", "audit", "aliases", "the line"]
    print(
        f"\nkilled {sum(places.values())} times, {outcome['kills'].get('at a random time', 0)} of them at a random time"
    )
    print("before".ljust(22) + "".join(row.rjust(10) for row in rows))
    for operation in operations:
        counts = [places[row, operation] for row in rows]
        if any(counts):
            print(operation.ljust(22) + "".join(f"{count:10,}" for count in counts))
    for name in ("points", "races", "did"):
        print(f"{name}: " + ", ".join(f"{what} {count:,}" for what, count in sorted(outcome[name].items())))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_interleavings(tmp_path: Path) -> None:
    with interleavings.memory(tmp_path) as memory:
        began = time.monotonic()
        outcome = interleavings.run(f"{memory}/registries", memory / "scratch", interleavings=1000)
        print(f"\n1,000 interleavings: {time.monotonic() - began:.0f} s", end="")
    print_table(outcome, tuple(sorted(killing.SYSTEM_CALLS)))
    assert outcome["wrong"] == []
    assert outcome["interleavings"] == 1000
    assert sum(outcome["kills"].values()) > 800
    assert all(outcome["did"][f"{name} refused"] for name in ("promote", "decide", "remove"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_point_of_every_step(tmp_path: Path) -> None:
    with interleavings.memory(tmp_path) as memory:
        outcome = interleavings.run(f"{memory}/registries", memory / "scratch", stride=1, races=200)
    print_table(outcome, tuple(sorted(killing.SYSTEM_CALLS)))
    assert outcome["wrong"] == []
    assert set(outcome["points"]) == set(interleavings.STEPS)
    assert min(outcome["points"].values()) > 40
    assert {"the promotion was refused", "the promotion was undone"} <= set(outcome["races"])


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_object_store(tmp_path: Path, s3_url: str) -> None:
    outcome = interleavings.run(s3_url, tmp_path / "scratch", interleavings=40, races=6)
    print_table(outcome, tuple(f"{when} {name}" for name in killing.REQUESTS for when in ("before", "after")))
    assert outcome["wrong"] == []
    assert outcome["interleavings"] == 40
    assert sum(outcome["kills"].values()) > 30


def write_large_model(directory: Path) -> Path:
    """135 million parameters of four bytes."""
    lines.write_model(directory, 1)
    text = json.dumps(
        {"w": {"dtype": "F32", "shape": [WEIGHTS_BYTES // 4], "data_offsets": [0, WEIGHTS_BYTES]}}
    ).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(WEIGHTS_BYTES // 10**6):
            file.write(os.urandom(10**6))
    return directory


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_roll_back_of_a_large_model_is_done_within_a_second(tmp_path: Path) -> None:
    line = lines.begin(str(tmp_path / "registry"), tmp_path / "made")
    seconds: dict[str, float] = {}

    def timed(what: str, act: Callable[[], object]) -> None:
        began = time.monotonic()
        act()
        seconds[what] = time.monotonic() - began

    first, second = (write_large_model(tmp_path / name) for name in ("first", "second"))
    timed("register", lambda: line.register(first, {}, why="a test"))
    timed("register the same again", lambda: line.register(first, {}, why="a test"))
    line.register(second, {}, why="a test")
    timed("fetch", lambda: line.fetch("1", tmp_path / "copies"))
    timed("verify", lambda: verify(line))
    fastest = []
    for expected in (1, 1, 1):
        line.promote(lines.ALIAS, 1, expected=line.alias(lines.ALIAS).version, why="a test")
        timed("promote", lambda: line.promote(lines.ALIAS, 2, expected=1, why="a test"))
        command = [sys.executable, "jobs/rollback.py", "--storage", str(tmp_path)]
        began = time.monotonic()
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        fastest.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
        assert open_registry(str(tmp_path / "registry")).line().alias(lines.ALIAS).version == expected
    seconds["jobs/rollback.py"] = min(fastest)
    print("\n540 MB, seconds: " + ", ".join(f"{what} {value:.2f}" for what, value in seconds.items()))
    assert min(fastest) < 1.0
