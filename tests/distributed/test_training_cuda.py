"""Training on a CUDA device: it follows the one on the CPU, and goes on from its checkpoints, on either.

A GPU adds in no fixed order, so nothing here is asked to agree to the last bit.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import training_runs as runs
from training_runs import Job

from pipeline.training.spec import TrainSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STAGES = [(0, "float32"), (2, "float32"), (3, "float32"), (2, "bfloat16"), (3, "bfloat16")]
LOSS_TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}
BAD = "row0005"
BAD_STEPS = [(stage, kind) for stage in (0, 2, 3) for kind in ("loss", "gradient")]


def losses(spec: TrainSpec) -> list[float]:
    return [row["loss"] for row in runs.metrics(spec) if row["split"] == "train"]


def batches(spec: TrainSpec) -> list[str]:
    return [row["rows"] for row in runs.metrics(spec) if row["split"] == "train"]


Trainings = dict[str, TrainSpec]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> Trainings:
    """All of them: on the device, then what goes on or is done again on the CPU."""
    material = runs.prepare(tmp_path_factory.mktemp("cuda"), built_model)
    specs: Trainings = {}

    def add(name: str, stage: int, dtype: str, **options: Any) -> TrainSpec:
        optim = material.options["optim"] | {"zero_stage": stage}
        specs[name] = material.spec(name, optim=optim, model={"dtype": dtype}, max_steps=8, **options)
        return specs[name]

    on_device, on_cpu = [], []
    for stage, dtype in STAGES:
        killed, moved = add(f"killed {stage} {dtype}", stage, dtype), add(f"moved {stage} {dtype}", stage, dtype)
        on_device += [Job(add(f"whole {stage} {dtype}", stage, dtype))]
        on_device += [Job(killed, abandon_after=5), Job(killed, resume=True), Job(moved, abandon_after=5)]
        on_cpu += [Job(moved, resume=True), Job(add(f"on cpu {stage} {dtype}", stage, dtype))]
    for stage, kind in BAD_STEPS:
        on_device += [Job(add(f"bad {kind} {stage}", stage, "bfloat16", batch_size=4), poison={BAD: kind})]
    there = runs.run_ranks(on_device, 1, material.root, "cuda")
    here = runs.run_ranks(on_cpu, 1, material.root)
    assert [one["resumed"] for one in there if one["resumed"]] == [4] * len(STAGES)
    assert [one["resumed"] for one in here] == [4, None] * len(STAGES)
    return specs


@pytest.mark.parametrize("kind", ["killed", "moved", "on cpu"])
@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_every_way_gives_the_same_training(trainings: Trainings, stage: int, dtype: str, kind: str) -> None:
    """Killed and resumed on the device, resumed on the CPU, and all of it on the CPU."""
    whole, other = trainings[f"whole {stage} {dtype}"], trainings[f"{kind} {stage} {dtype}"]
    assert losses(whole)[0] == pytest.approx(math.log(2), abs=1e-5 if dtype == "float32" else 2e-2)
    assert batches(other) == batches(whole)
    assert losses(other) == pytest.approx(losses(whole), abs=LOSS_TOLERANCE[dtype])


@pytest.mark.parametrize(("stage", "kind"), BAD_STEPS)
def test_a_bad_batch_changes_nothing(trainings: Trainings, stage: int, kind: str) -> None:
    spec = trainings[f"bad {kind} {stage}"]
    [skipped] = [row for row in runs.metrics(spec) if row["split"] == "skipped"]
    assert skipped["fault"] == kind
    assert BAD in skipped["row_ids"]
    assert len(losses(spec)) == 7
    assert json.loads((Path(spec.out_dir) / "training.json").read_text())["skipped_steps"] == 1
    assert all(weight.isfinite().all() for weight in runs.weights(spec).values())
