"""Faults and sizes that take minutes: ``make chaos``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import passes

KILLS = 24


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_kills_change_no_byte_and_repeat_no_file(tmp_path: Path, built_model: Path) -> None:
    options = passes.prepare(tmp_path, built_model, 720, hidden=128)
    disturbed = options | {"root": str(tmp_path / "disturbed")}
    counted = passes.survive(disturbed, tmp_path, kills=KILLS, seed=0)
    print(f"\n{counted}")
    assert counted["driver"] + counted["actor"] == KILLS
    assert counted["seen before a kill"] >= KILLS
    passes.run(options | {"max_actors": 1}, tmp_path)
    assert passes.contents(disturbed) == passes.contents(options)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_stays_flat_when_the_data_grow_tenfold(tmp_path: Path, built_model: Path) -> None:
    peaks = []
    for number, pairs in enumerate((400, 4000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = passes.prepare(folder, built_model, pairs)
        options["reference"] = {"rows_per_shard": 64, "batch_tokens": 2048}
        _, _, _, driver, actor, _ = passes.run(options, folder)
        peaks.append((int(driver), int(actor)))
    (driver, actor), (large_driver, large_actor) = peaks
    print(
        f"\nunique memory, MB: driver {driver / 1e6:.1f} -> {large_driver / 1e6:.1f}, actor {actor / 1e6:.1f} -> "
        f"{large_actor / 1e6:.1f}"
    )
    assert 0 < large_driver <= 1.1 * driver
    assert 0 < large_actor <= 1.1 * actor
