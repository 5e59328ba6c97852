"""Data that grow, at size and under kills: ``make chaos``."""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import LossConfig, RiskConfig
from pipeline.data.tables import read_table
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.reader import OpenCache
from pipeline.training.policy import PolicyWithObjective
from pipeline.training.preference import PreferenceTask

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import passes
import tiny

STEPS, BATCH = 60, 8


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_pairs_and_a_hundred_more(tmp_path: Path, built_model: Path) -> None:
    """Exactly the new ones pass the reference, nothing that is there is written again, and training cannot tell."""
    options = passes.prepare(tmp_path, built_model, 900, hidden=256, validation=100)
    options |= {"reference": {"rows_per_shard": 64, "batch_tokens": 2048}, "max_actors": 1}
    first, *_ = run(options, tmp_path)
    more = passes.grown(options, tmp_path, 90, 10)
    output, rows, seconds, grown = run(more, tmp_path)
    assert rows == (100, 1000)
    assert "1,000 pairs are taken over from 1 other cache(s)" in output
    _, rows, whole_seconds, at_once = run(more | {"root": str(tmp_path / "elsewhere")}, tmp_path)
    assert rows == (1100, 0)

    donor = Path(first.splitlines()[-1].split()[-1])
    before, after = passes.shards(donor), passes.shards(grown)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2 + 1

    batches = [every_row(cache, Path(more["tokens"])) for cache in (grown, at_once)]
    apart = {name: float((batches[0][name] - batches[1][name]).abs().max()) for name in batches[0]}
    assert max(apart.values()) < 1e-4
    curves = [trained(options["model"], cache, Path(more["tokens"])) for cache in (grown, at_once)]
    assert [curve[0] for curve in curves] == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert curves[0][-1] < 0.6, "it must have learnt something, or the comparison is empty"
    losses = max(abs(one - other) for one, other in zip(*curves, strict=True))
    print(
        f"\n1,000 pairs taken over and 100 computed in {seconds:.1f} s, 1,100 computed in {whole_seconds:.1f} s; "
        f"largest difference of a number {apart}, of a loss in {STEPS} steps {losses:.1e}"
    )


def run(options: dict[str, Any], folder: Path) -> tuple[str, tuple[int, int], float, Path]:
    """Output of a pass, its rows, its seconds and its place."""
    output = passes.finish(passes.start(options, folder), 300)
    words = output.splitlines()[-1].split()
    return output, passes.rows(output), float(words[2]), Path(words[-1])


def every_row(cache: Path, tokens: Path) -> dict[str, torch.Tensor]:
    pairs = read_table(tokens / "train.parquet", PairTokens)
    rows = OpenCache(Place(str(cache)), device=torch.device("cpu"), dtype=torch.float32).rows("train", pairs)
    return rows.collate([pair.row_id for pair in pairs])


def trained(model: str, cache: Path, tokens: Path) -> list[float]:
    """Losses of a short training by CVaR on a cache."""
    pairs = read_table(tokens / "train.parquet", PairTokens)
    rows = OpenCache(Place(str(cache)), device=torch.device("cpu"), dtype=torch.float32).rows("train", pairs)
    task = PreferenceTask(pairs, rows, LossConfig(beta=0.5), RiskConfig(level=0.9), tiny.PAD, 50_000)
    policy = PolicyWithObjective(AutoModelForCausalLM.from_pretrained(model).eval())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        start = BATCH * step % 64
        total, _ = policy(task.collate(list(range(start, start + BATCH))), task)
        losses.append(total.item() / BATCH)
        optimizer.zero_grad()
        (total / BATCH).backward()
        optimizer.step()
    return losses


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("donor")
    options = passes.prepare(root, built_model, 120, hidden=128)
    passes.run(options, root)
    return options


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, donor: dict[str, Any], tmp_path: Path) -> Place:
    """A place with a copy of the donor alone."""
    where = str(tmp_path / "references") if request.param == "local" else request.getfixturevalue("s3_url")
    [cache] = (path for path in Path(donor["root"]).iterdir() if path.is_dir())
    if request.param == "local":
        shutil.copytree(cache, Path(where) / cache.name, ignore=shutil.ignore_patterns(".*"))
    else:
        for path in cache.iterdir():
            if path.is_file() and not path.name.startswith("."):
                Place(where).below(cache.name).write(path.name, path.read_bytes())
    return Place(where)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kills_while_data_grow(donor: dict[str, Any], root: Place, tmp_path: Path) -> None:
    """The driver and its actors are killed when so many files are there: while files are taken over, and while the rest
    is computed. Every row is there once at the end, in the files of an undisturbed pass."""
    options = passes.grown(donor, tmp_path, 80, 8) | {"root": root.root, "storage": str(tmp_path)}
    [there] = root.folders()
    seen: dict[str, bytes] = {}
    kills = 0
    for files in (1, 30, 67, 75, 90):
        process = passes.start(options, tmp_path)
        try:
            deadline = time.monotonic() + 120
            while len(mine(root, there)) < files and process.poll() is None:
                assert time.monotonic() < deadline, passes.log_of(process)
                time.sleep(0.02)
            kills += process.poll() is None
        finally:
            passes.kill(process)
        cache = [name for name in root.folders() if name != there]
        seen |= {name: root.below(cache[0]).read(name) for name in mine(root, there)} if cache else {}
    assert kills >= 4
    output = passes.finish(passes.start(options, tmp_path), 300)
    place = Place(output.split()[-1])
    made = {name: place.read(name) for name in place.names()}
    assert seen.items() <= made.items()
    assert ReferenceCache(place).verify().whole

    alone = passes.grown_elsewhere(options, donor, tmp_path / "alone")
    output = passes.finish(passes.start(alone, tmp_path), 300)
    assert passes.rows(output) == (88, 132)
    undisturbed = Place(output.split()[-1])
    assert {name: undisturbed.read(name) for name in undisturbed.names()} == made
    print(f"\n{kills} kills, {len(made)} files, {len(seen)} of them there before a kill")


def mine(root: Place, donor: str) -> list[str]:
    """Files of the cache that is made."""
    caches = [name for name in root.folders() if name != donor]
    return [name for name in root.below(caches[0]).names() if name.endswith(".safetensors")] if caches else []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_donor_that_is_damaged_and_goes_away(donor: dict[str, Any], root: Place, tmp_path: Path) -> None:
    """One of its files is damaged, and all are removed as soon as the first one is taken over."""
    options = passes.grown(donor, tmp_path, 8, 1) | {"root": root.root, "storage": str(tmp_path)}
    [name] = root.folders()
    place = root.below(name)
    shards = [file for file in place.names() if file.startswith("train-")]
    data = bytearray(place.read(shards[0]))
    data[-9] ^= 1
    place.write(shards[0], bytes(data))
    process = passes.start(options, tmp_path)
    while not mine(root, name) and process.poll() is None:
        time.sleep(0.005)
    for file in place.names():
        place.remove(file)
    output = passes.finish(process, 300)
    computed, taken = passes.rows(output)
    assert computed + taken == 141
    assert computed >= 9 + 2
    assert "cannot be taken over, and are computed" in output
    made = ReferenceCache(Place(output.split()[-1]))
    assert made.verify().whole
    manifest = made.manifest()
    assert manifest is not None
    assert manifest["origin"]["computed"] == computed
    assert sum(manifest["origin"]["taken_over"].values()) == taken
