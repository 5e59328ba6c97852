"""A training whose ranks share nothing but an object store, cut off and gone on with: the training that was never
interrupted, to the last byte."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import training_runs as runs
from training_runs import Job

from pipeline.checkpoints.remote import RemoteRun
from pipeline.places import Place

SPIKE = {"on_spike": "roll_back", "spike_window": 8, "roll_back_every_steps": 5, "max_roll_backs": 1}


@pytest.mark.long
def test_from_checkpoints_at_a_url(
    built_model: Path, tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    material = runs.prepare(tmp_path, built_model)
    local, spiking = (
        material.spec("undisturbed"),
        material.spec("spiking", guard=SPIKE, max_steps=16, batch_size=2, eval_every_steps=100),
    )
    there = dataclasses.replace(local, run_dir=f"{s3_url}/cut/run", out_dir=f"{s3_url}/cut/out")
    back = dataclasses.replace(spiking, run_dir=f"{s3_url}/spike/run", out_dir=f"{s3_url}/spike/out")
    spike = {runs.rows_of_steps(material, 16, 2)[12][0]: "spike"}
    jobs = [
        Job(local),
        Job(there, abandon_after=9),
        Job(there, resume=True),
        Job(spiking, poison=spike),
        Job(spiking, resume=True),
        Job(back, poison=spike),
        Job(back, resume=True),
    ]
    _, cut, went_on, local_spike, local_after, remote_spike, remote_after = runs.run_ranks(jobs, 2, tmp_path)

    assert cut["abandoned"]
    assert went_on["resumed"] == 8
    assert sorted(went_on["sent"]) == sorted(
        path.relative_to(local.out_dir).as_posix() for path in Path(local.out_dir).rglob("*") if path.is_file()
    )
    for name in ("model/model.safetensors", "metrics.jsonl", "training.json"):
        folder, _, last = f"{there.out_dir}/{name}".rpartition("/")
        assert Place(folder).read(last) == (Path(local.out_dir) / name).read_bytes(), name
    assert RemoteRun(there.run_dir, there.identity).steps() == [8, 12]

    assert remote_spike["rolled_back"] == local_spike["rolled_back"] == 1.0
    assert remote_after["resumed"] == local_after["resumed"] == 10
    assert Place(back.out_dir).read("metrics.jsonl") == (Path(spiking.out_dir) / "metrics.jsonl").read_bytes()
    assert not list((tmp_path / "scratch").glob("*/step-*")), "a node keeps nothing of checkpoints"
