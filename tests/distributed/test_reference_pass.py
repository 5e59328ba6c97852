"""The reference pass by real Ray actors: resumed, shared, repaired; only what is missing is computed."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.places import Place
from pipeline.reference.cache import ReferenceCache

sys.path.insert(0, str(Path(__file__).parent))
import passes

PAIRS = 160


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[passes.Session]:
    with passes.Session(tmp_path_factory.mktemp("session")) as session:
        yield session


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, built_model: Path, session: passes.Session
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Options of a pass, and what it wrote with one actor."""
    root = tmp_path_factory.mktemp("undisturbed")
    options = passes.prepare(root, built_model, PAIRS, hidden=128)
    output = session.run(options | {"max_actors": 1})
    assert output.splitlines()[-1].split()[:2] == ["done", str(PAIRS // 2 + PAIRS // 20 + 1)]
    return options, passes.contents(options)


def elsewhere(undisturbed: tuple[dict[str, Any], Any], folder: Path) -> dict[str, Any]:
    return undisturbed[0] | {"root": str(folder / "references"), "storage": str(folder)}


def test_when_the_data_grow_only_new_rows_pass_the_reference(
    undisturbed: Any, session: passes.Session, tmp_path: Path
) -> None:
    before, files = undisturbed
    root = tmp_path / "references"
    [donor] = (path for path in Path(before["root"]).iterdir() if path.is_dir())
    shutil.copytree(donor, root / donor.name, ignore=shutil.ignore_patterns(".*"))
    options = passes.grown(elsewhere(undisturbed, tmp_path), tmp_path, 13, 3)
    output = session.run(options)
    assert passes.rows(output) == (16, PAIRS + PAIRS // 10)
    assert f"{PAIRS + PAIRS // 10} pairs are taken over from 1 other cache(s)" in output
    made = Path(output.split()[-1])
    held, now = passes.shards(root / donor.name), passes.shards(made)
    assert held.items() <= now.items()
    assert len(now) == len(held) + 7 + 2
    assert all(path.stat().st_nlink == 2 for path in (root / donor.name).glob("*.safetensors")), "no byte twice"
    assert ReferenceCache(Place(str(made))).verify().whole
    assert files == {name: (root / donor.name / name).read_bytes() for name in files}


def test_only_what_is_damaged_is_computed_again(undisturbed: Any, session: passes.Session) -> None:
    options, expected = undisturbed
    [cache] = (path for path in Path(options["root"]).iterdir() if path.is_dir())
    before = passes.committed(options)
    flipped, short = sorted(cache.glob("train-*"))[3:5]
    data = bytearray(flipped.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    flipped.write_bytes(data)
    short.write_bytes(short.read_bytes()[:-7])
    output = session.run(options)
    assert output.splitlines()[-1].split()[:2] == ["done", "2"]
    assert flipped.name in output
    assert passes.contents(options) == expected
    after = passes.committed(options)
    assert {name for name in before if before[name] != after[name]} == {flipped.name, short.name}


@pytest.mark.long
def test_kills_of_actors_and_driver_change_no_byte(undisturbed: Any, tmp_path: Path) -> None:
    options = elsewhere(undisturbed, tmp_path)
    counted = passes.survive(options, tmp_path, kills=2, seed=1)
    assert counted["driver"] == counted["actor"] == 1
    assert counted["seen before a kill"] > 0
    assert passes.contents(options) == undisturbed[1]


def test_of_two_jobs_one_computes_and_the_other_waits(undisturbed: Any, tmp_path: Path) -> None:
    options = elsewhere(undisturbed, tmp_path)
    [cache] = (path for path in Path(undisturbed[0]["root"]).iterdir() if path.is_dir())
    waiting = "another job computes this reference; waiting for it"
    with Place(options["root"]).below(cache.name).lock(lambda: None):
        jobs = [passes.start(options | {"max_actors": 1}, tmp_path) for _ in range(2)]
        deadline = time.monotonic() + 120
        while not all(waiting in passes.log_of(one) for one in jobs):  # however long a busy machine takes to start both
            assert time.monotonic() < deadline, [passes.log_of(one) for one in jobs]
            time.sleep(0.05)
    outputs = [passes.finish(one) for one in jobs]
    computed = sorted(int(output.splitlines()[-1].split()[1]) for output in outputs)
    assert computed == [0, len(passes.committed(options))]
    assert passes.contents(options) == undisturbed[1]
