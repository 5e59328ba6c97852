"""A training that goes on from a checkpoint is the training that was never interrupted; bad numbers change nothing.

All trainings of one number of workers run in one group of processes, which takes most of the time to start.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import training_runs as runs
from training_runs import Job, Material

from pipeline.checkpoints.directory import Checkpoint, RunDirectory
from pipeline.training.spec import TrainSpec

STAGES = [(stage, dtype) for dtype in ("float32", "bfloat16") for stage in range(4)]
FAULTS = [(kind, stage, dtype) for stage, dtype in STAGES for kind in ("loss", "gradient")]
BAD = "row0005"
SPIKE_GUARD = {"on_spike": "roll_back", "spike_window": 8, "roll_back_every_steps": 5, "max_roll_backs": 1}


class Trainings:
    """Attempts by name, with what came of each."""

    def __init__(self, material: Material) -> None:
        self.material = material
        self.specs: dict[str, TrainSpec] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        self._jobs: list[tuple[str, Job]] = []

    def add(self, name: str, *attempts: dict[str, Any], **options: Any) -> None:
        """A training with its attempts (arguments of `Job`), to be done by the next `run`."""
        if name not in self.specs:
            self.specs[name] = self.material.spec(name, **options)
        self._jobs += [(name, Job(self.specs[name], **attempt)) for attempt in attempts]

    def run(self, world_size: int) -> None:
        done = runs.run_ranks([job for _, job in self._jobs], world_size, self.material.root)
        for (name, _), result in zip(self._jobs, done, strict=True):
            self.results.setdefault(name, []).append(result)
        self._jobs = []

    def directory(self, name: str) -> RunDirectory:
        return RunDirectory(Path(self.specs[name].run_dir), self.specs[name].identity)

    def record(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((Path(self.specs[name].out_dir) / "training.json").read_text())
        return value

    def rows(self, name: str, split: str) -> list[dict[str, Any]]:
        return [row for row in runs.metrics(self.specs[name]) if row["split"] == split]

    def weights(self, name: str) -> str:
        return runs.weights_digest(self.specs[name])


def plant_pickles(run: Path, marker: Path) -> None:
    """Beside the files of a run and of its checkpoint, files that make `marker` when they are loaded."""

    class Malicious:
        def __reduce__(self) -> object:
            return os.system, (f"touch {marker}",)

    for place in (run, run / "step-00000008"):
        for name in ("latest", "optimizer.pt", "pytorch_model.bin", "rank-00001.pkl", "training_args.bin"):
            (place / name).write_bytes(pickle.dumps(Malicious()))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> Trainings:
    material = runs.prepare(tmp_path_factory.mktemp("resume"), built_model)
    done = Trainings(material)
    optim = material.options["optim"]
    whole, cut, again = {}, {"abandon_after": 9}, {"resume": True}
    done.add("undisturbed", whole, checkpoint={"keep": 10})
    done.add("without", whole, checkpoint={"every_steps": None})
    done.add("killed", cut, again)
    done.add("two then one", cut)
    done.add("two then three", cut)
    for stage, dtype in STAGES:
        options = {"optim": optim | {"zero_stage": stage}, "max_steps": 8, "model": {"dtype": dtype}}
        done.add(f"whole {stage} {dtype}", whole, **options)
        done.add(f"killed {stage} {dtype}", {"abandon_after": 5}, again, **options)
    for kind, stage, dtype in FAULTS:
        options = {"optim": optim | {"zero_stage": stage}, "max_steps": 5, "batch_size": 4, "model": {"dtype": dtype}}
        poison = {"poison": {BAD: kind}}
        done.add(f"bad {kind} {stage} {dtype}", poison, **options)
        if (stage, dtype) == (3, "float32"):
            done.add(f"bad {kind} killed", poison | {"abandon_after": 4}, poison | again, **options)
    many = {f"row{number:04d}": "loss" for number in range(20)}
    done.add("too many", {"poison": many}, guard={"max_skipped_steps": 1}, batch_size=4)
    ids = runs.rows_of_steps(material, 16, batch_size=2)
    once = {"poison": {ids[12][0]: "spike"}}
    done.add("spike", once, again, guard=SPIKE_GUARD, max_steps=16, batch_size=2, eval_every_steps=100)
    done.add("spikes", once, once | again, guard=SPIKE_GUARD, max_steps=16, batch_size=2, eval_every_steps=100)
    done.run(2)
    done.add("one then two", cut)
    done.add("two then one", again)
    done.add("pickles", cut, max_steps=10)
    done.run(1)
    plant_pickles(done.directory("pickles").path, material.root / "executed")
    done.add("one then two", again)
    done.add("pickles", again)
    done.run(2)
    done.add("two then three", again)
    done.run(3)
    return done


class TestResume:
    def test_exactly_the_same_after_a_kill(self, trainings: Trainings) -> None:
        """Weights to the last bit, metrics to the last byte: every batch once, in order."""
        assert [one["resumed"] for one in trainings.results["killed"]] == [None, 8]
        assert trainings.weights("killed") == trainings.weights("undisturbed")
        ours, theirs = (Path(trainings.specs[name].out_dir) / "metrics.jsonl" for name in ("killed", "undisturbed"))
        assert ours.read_bytes() == theirs.read_bytes()
        assert [row["step"] for row in trainings.rows("killed", "train")] == list(range(1, 15))
        assert [row["step"] for row in trainings.rows("killed", "validation")] == [7, 14]
        assert trainings.record("killed") == trainings.record("undisturbed")

    def test_checkpoints_change_nothing(self, trainings: Trainings) -> None:
        assert trainings.directory("without").steps() == []
        assert trainings.weights("without") == trainings.weights("undisturbed")

    def test_as_many_are_kept_as_asked_for(self, trainings: Trainings) -> None:
        assert trainings.directory("undisturbed").steps() == [4, 8, 12]
        assert trainings.directory("killed").steps() == [8, 12]

    @pytest.mark.parametrize(("stage", "dtype"), STAGES)
    def test_every_stage_of_zero(self, trainings: Trainings, stage: int, dtype: str) -> None:
        assert trainings.results[f"killed {stage} {dtype}"][1]["resumed"] == 4
        assert trainings.weights(f"killed {stage} {dtype}") == trainings.weights(f"whole {stage} {dtype}")

    @pytest.mark.parametrize("name", ["two then one", "one then two", "two then three"])
    def test_another_number_of_workers(self, trainings: Trainings, name: str) -> None:
        """Same batches in the same order, losses within rounding."""
        assert trainings.results[name][1]["resumed"] == 8
        ours, theirs = trainings.rows(name, "train"), trainings.rows("undisturbed", "train")
        assert [row["rows"] for row in ours] == [row["rows"] for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=2e-5), f"step {one['step']}"
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-3), f"step {one['step']}"
        expected = runs.weights(trainings.specs["undisturbed"])
        for parameter, weight in runs.weights(trainings.specs[name]).items():
            if not parameter.endswith("query_key_value.bias"):  # its gradient is rounding noise, which Adam scales up
                assert torch.allclose(weight, expected[parameter], atol=2e-3), parameter


class TestBadNumbers:
    @pytest.mark.parametrize(("kind", "stage", "dtype"), FAULTS)
    def test_a_bad_batch_changes_nothing(self, trainings: Trainings, kind: str, stage: int, dtype: str) -> None:
        """One bad row on one of two workers: the step is left out on both, counted, and its rows are written down."""
        name = f"bad {kind} {stage} {dtype}"
        [skipped] = trainings.rows(name, "skipped")
        assert skipped["fault"] == kind
        assert BAD in skipped["row_ids"]
        assert len(trainings.rows(name, "train")) == 4
        assert trainings.record(name)["skipped_steps"] == 1
        [line] = (Path(trainings.specs[name].out_dir) / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["row_ids"] == skipped["row_ids"]
        assert all(weight.isfinite().all() for weight in runs.weights(trainings.specs[name]).values())

    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    def test_also_over_a_kill(self, trainings: Trainings, kind: str) -> None:
        assert trainings.weights(f"bad {kind} killed") == trainings.weights(f"bad {kind} 3 float32")
        assert trainings.record(f"bad {kind} killed")["skipped_steps"] == 1

    def test_the_fault_does_not_matter(self, trainings: Trainings) -> None:
        """A step left out for its loss and one left out for its gradient leave the same training."""
        for stage, dtype in STAGES:
            loss, gradient = (trainings.weights(f"bad {kind} {stage} {dtype}") for kind in ("loss", "gradient"))
            assert loss == gradient

    def test_too_many_end_the_run(self, trainings: Trainings) -> None:
        [result] = trainings.results["too many"]
        assert "guard.max_skipped_steps = 1" in result["error"]
        files = sorted((trainings.directory("too many").path / "skipped").iterdir())
        assert len(files) == 2
        assert str(files[-1]) in result["error"]


class TestSpikes:
    def test_back_to_the_last_good_checkpoint_at_a_lower_rate(self, trainings: Trainings) -> None:
        first, second = trainings.results["spike"]
        assert first["rolled_back"] == 1.0
        assert second["resumed"] == 10
        assert [row["step"] for row in trainings.rows("spike", "train")] == list(range(1, 17))
        [back] = trainings.rows("spike", "roll_back")
        assert (back["step"], back["to"], back["lr_scale"]) == (13, 10, 0.5)
        rates = {row["step"]: row["lr"] for row in trainings.rows("spike", "train")}
        assert rates[11] < 0.6 * rates[10]
        record = trainings.record("spike")
        assert (record["roll_backs"], record["lr_scale"]) == (1, 0.5)

    def test_not_without_end(self, trainings: Trainings) -> None:
        assert "guard.max_roll_backs = 1" in trainings.results["spikes"][1]["error"]


class TestDamage:
    @pytest.mark.parametrize("fault", ["flipped", "short", "missing"])
    @pytest.mark.parametrize("name", ["checkpoint.json", "rank-00000.safetensors", "rank-00001.safetensors"])
    def test_it_is_named_and_an_older_checkpoint_taken(
        self, trainings: Trainings, tmp_path: Path, name: str, fault: str
    ) -> None:
        copy = tmp_path / "run"
        shutil.copytree(trainings.directory("undisturbed").path, copy)
        path = copy / "step-00000012" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if fault == "missing":
            path.unlink()
        else:
            path.write_bytes(data if fault == "flipped" else data[:-1])
        said: list[str] = []
        found = RunDirectory(copy, trainings.specs["undisturbed"].identity).newest(said.append)
        assert isinstance(found, Checkpoint)
        assert found.step == 8
        assert name in said[0]
        assert "step-00000012" in said[0]

    def test_a_pickle_is_never_loaded(self, trainings: Trainings) -> None:
        marker = trainings.material.root / "executed"
        last = trainings.results["pickles"][-1]
        assert last["resumed"] == 8
        assert any("optimizer.pt is no part of the checkpoint" in line for line in last["said"])
        assert not marker.exists()
        pickle.loads((trainings.directory("pickles").path / "latest").read_bytes())
        assert marker.exists(), "the file would have shown that it was loaded"
