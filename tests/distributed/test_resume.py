"""A training that goes on from a checkpoint is the training that was never interrupted."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import training_runs as runs

from pipeline.checkpoints.directory import RunDirectory
from pipeline.training.spec import TrainSpec


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> runs.Material:
    return runs.prepare(tmp_path_factory.mktemp("resume"), built_model)


@pytest.fixture(scope="module")
def undisturbed(material: runs.Material) -> TrainSpec:
    """Two workers with ZeRO-3, never interrupted, with checkpoints; its checkpoints are left there."""
    spec = material.spec("undisturbed", checkpoint={"keep": 10})
    runs.run_ranks(spec, 2)
    return spec


def directory(spec: TrainSpec) -> RunDirectory:
    return RunDirectory(Path(spec.run_dir), spec.identity)


def test_exactly_the_same_after_a_kill(material: runs.Material, undisturbed: TrainSpec) -> None:
    """Weights to the last bit, metrics to the last byte: every batch once, in order. With and without checkpoints."""
    spec = material.spec("killed")
    runs.run_ranks(spec, 2, die_after=9)
    assert directory(spec).steps() == [4, 8]
    runs.run_ranks(spec, 2, resume=True)
    assert runs.weights_digest(spec) == runs.weights_digest(undisturbed)
    assert (Path(spec.out_dir) / "metrics.jsonl").read_bytes() == (
        Path(undisturbed.out_dir) / "metrics.jsonl"
    ).read_bytes()
    rows = runs.metrics(spec)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 15))
    assert [row["step"] for row in rows if row["split"] == "validation"] == [7, 14]
    without = material.spec("without", checkpoint={"every_steps": None})
    runs.run_ranks(without, 2)
    assert runs.weights_digest(without) == runs.weights_digest(undisturbed), "taking checkpoints changed the training"
    records = [json.loads((Path(one.out_dir) / "training.json").read_text()) for one in (spec, undisturbed)]
    assert records[0] == records[1], "what a resumed run says of itself, its first weights included"


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (1, "float32"), (2, "float32"), (3, "bfloat16"), (2, "bfloat16")]
)
def test_every_stage_of_zero(material: runs.Material, stage: int, dtype: str) -> None:
    optim = material.options["optim"] | {"zero_stage": stage}
    options = {"optim": optim, "max_steps": 8, "model": {"dtype": dtype}, "eval_every_steps": 100}
    whole = material.spec(f"whole-{stage}-{dtype}", **options)
    runs.run_ranks(whole, 2)
    spec = material.spec(f"killed-{stage}-{dtype}", **options)
    runs.run_ranks(spec, 2, die_after=5)
    runs.run_ranks(spec, 2, resume=True)
    assert runs.weights_digest(spec) == runs.weights_digest(whole)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_workers(material: runs.Material, undisturbed: TrainSpec, before: int, after: int) -> None:
    """Same batches in the same order, losses within rounding."""
    spec = material.spec(f"elastic-{before}-{after}")
    runs.run_ranks(spec, before, die_after=9)
    runs.run_ranks(spec, after, resume=True)
    ours = [row for row in runs.metrics(spec) if row["split"] == "train"]
    theirs = [row for row in runs.metrics(undisturbed) if row["split"] == "train"]
    assert [row["rows"] for row in ours] == [row["rows"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5), f"step {one['step']}"
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-3), f"step {one['step']}"
    for name, weight in runs.weights(undisturbed).items():
        if not name.endswith("query_key_value.bias"):  # its gradient is rounding noise, see test_zero
            assert torch.allclose(runs.weights(spec)[name], weight, atol=1e-4), name


class TestBadNumbers:
    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    @pytest.mark.parametrize("stage", [0, 2, 3])
    def test_a_bad_batch_changes_nothing(self, material: runs.Material, kind: str, stage: int) -> None:
        """One bad row, on one of two workers: weights stay finite, the step is counted, its rows are written down,
        and a resume right after it ends in the same weights."""
        options = {"optim": material.options["optim"] | {"zero_stage": stage}, "max_steps": 10, "batch_size": 4}
        spec = material.spec(f"bad-{kind}-{stage}", **options)
        bad = "row0005"
        runs.run_ranks(spec, 2, poison={bad: kind})
        rows = runs.metrics(spec)
        skipped = [row for row in rows if row["split"] == "skipped"]
        assert [bad in row["row_ids"] for row in skipped] == [True]
        assert skipped[0]["fault"] == kind
        assert len([row for row in rows if row["split"] == "train"]) == 9
        record = json.loads((Path(spec.out_dir) / "training.json").read_text())
        assert record["skipped_steps"] == 1
        [line] = (Path(spec.out_dir) / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["row_ids"] == skipped[0]["row_ids"]
        assert all(weight.isfinite().all() for weight in runs.weights(spec).values())
        if stage == 3:
            again = material.spec(f"bad-{kind}-{stage}-killed", **options, checkpoint={"every_steps": 1})
            runs.run_ranks(again, 2, poison={bad: kind}, die_after=skipped[0]["step"])
            runs.run_ranks(again, 2, poison={bad: kind}, resume=True)
            assert runs.weights_digest(again) == runs.weights_digest(spec)

    def test_too_many_end_the_run(self, material: runs.Material) -> None:
        spec = material.spec("too-many", guard={"max_skipped_steps": 1}, batch_size=4)
        faults = dict.fromkeys([f"row{number:04d}" for number in range(20)], "loss")
        output = runs.run_ranks(spec, 2, poison=faults, die_after=1000)
        assert "guard.max_skipped_steps = 1" in output
        assert len(list((Path(spec.run_dir) / "skipped").iterdir())) == 2

    def test_a_spike_goes_back(self, material: runs.Material) -> None:
        """To the last good checkpoint, at half the rate; a second one ends the run, and so does the third attempt."""
        guard = {
            "on_spike": "roll_back",
            "spike_window": 8,
            "roll_back_every_steps": 5,
            "max_roll_backs": 1,
        }
        spec = material.spec("spike", guard=guard, max_steps=16, batch_size=2, eval_every_steps=100)
        rows = runs.rows_of_steps(material, 16, batch_size=2)
        spiked = next(row for row in rows[12] if all(row not in other for other in rows[:12]))
        runs.run_ranks(spec, 2, poison={spiked: "spike"})
        assert json.loads((Path(spec.out_dir) / "result.json").read_text()) == {"rolled_back": 1.0}
        assert directory(spec).steps()[-1] == 10
        runs.run_ranks(spec, 2, poison={}, resume=True)
        rows_written = runs.metrics(spec)
        assert [row["step"] for row in rows_written if row["split"] == "train"] == list(range(1, 17))
        [back] = [row for row in rows_written if row["split"] == "roll_back"]
        assert (back["step"], back["to"], back["lr_scale"]) == (13, 10, 0.5)
        lrs = {row["step"]: row["lr"] for row in rows_written if row["split"] == "train"}
        assert lrs[11] < 0.6 * lrs[10]


class TestDamage:
    def test_every_changed_file_is_found_and_an_older_checkpoint_taken(
        self, undisturbed: TrainSpec, tmp_path: Path
    ) -> None:
        import shutil

        from pipeline.checkpoints.directory import Checkpoint

        names = ["checkpoint.json", "rank-00000.safetensors", "rank-00001.safetensors"]
        for name in names:
            for fault in ("flipped", "short", "missing"):
                copy = tmp_path / f"{name}-{fault}"
                shutil.copytree(undisturbed.run_dir, copy)
                path = copy / "step-00000012" / name
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                if fault == "missing":
                    path.unlink()
                else:
                    path.write_bytes(data if fault == "flipped" else data[:-1])
                said: list[str] = []
                found = RunDirectory(copy, undisturbed.identity).newest(said.append)
                assert isinstance(found, Checkpoint)
                assert found.step == 8
                assert name in said[0]
                assert "step-00000012" in said[0]

    def test_a_pickle_is_never_loaded(self, material: runs.Material, tmp_path: Path) -> None:
        spec = material.spec("pickle", max_steps=10)
        runs.run_ranks(spec, 1, die_after=9)
        marker = tmp_path / "executed"

        class Malicious:
            def __reduce__(self) -> object:
                return os.system, (f"touch {marker}",)

        places = [Path(spec.run_dir), Path(spec.run_dir) / "step-00000008"]
        for place in places:
            for name in ("latest", "optimizer.pt", "pytorch_model.bin", "rank-00001.pkl", "training_args.bin"):
                (place / name).write_bytes(pickle.dumps(Malicious()))
        said: list[str] = []
        runs.run_ranks(spec, 1, resume=True, said=said)
        assert not marker.exists()
        assert any("optimizer.pt is no part of the checkpoint" in line for line in said)
        assert pickle.loads((places[1] / "latest").read_bytes()) == 0
        assert marker.exists(), "the file would have shown that it was loaded"
