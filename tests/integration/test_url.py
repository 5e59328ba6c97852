"""The job on one machine with its storage at a URL: the same result as on a directory, and a resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

from pipeline.artifacts import Store
from pipeline.places import Place

SAME = ("training.json", "metrics.jsonl", "model/model.safetensors")


def artefact(root: str, stage: str) -> Path:
    """The files of the one artefact of a stage, wherever it is."""
    store = Store(root, create=False)
    [key] = store.list(stage)
    return store.open(stage, key).path


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_after_a_checkpoint(
    finished_run: FinishedRun, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the alignment and started again as on another machine, with an empty scratch directory:
    weights and metrics to the last byte those of an undisturbed run on a directory."""
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "first"))
    arguments = ["--recipe", str(finished_run.recipe), "--storage", s3_url, "--checkpoint.every_steps", "2"]
    process = job.start(arguments, tmp_path / "killed.log")
    checkpoints = Place(f"{s3_url}/checkpoints")
    try:
        deadline = time.monotonic() + 400
        while not any(name.startswith("align-") and "/step-" in name for name in checkpoints.sizes()):
            assert process.poll() is None, (tmp_path / "killed.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "killed.log").read_text()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not Store(s3_url, create=False).list("align"), "killed too late to mean anything"
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "second"))
    code, output = job.run(arguments)
    assert code == 0, output
    assert "goes on from step" in output
    assert "= sft  reused" in output
    for name in SAME:
        there = artefact(str(finished_run.storage), "align") / name
        assert (artefact(s3_url, "align") / name).read_bytes() == there.read_bytes(), name
    reports = Place(f"{s3_url}/reports")
    [published] = reports.folders()
    summary = json.loads(reports.below(published).read("summary.json"))
    assert summary["evaluation"] == job.summary(finished_run.storage)["evaluation"]
    assert checkpoints.sizes() == {}, "a committed training needs none"
    assert len(Place(f"{s3_url}/logs").names()) == 1, "what a killed job said is on its node"


def test_a_dry_run_writes_nothing(s3_url: str, tmp_path: Path) -> None:
    """A model of one's own becomes a stage: other nodes do not have its directory."""
    recipe = job.write_recipe(tmp_path)
    code, output = job.run(["--recipe", str(recipe), "--storage", s3_url, "--dry-run"])
    assert code == 0, output
    assert f"{len(job.STAGES)} of {len(job.STAGES)} stages to do, storage {s3_url}" in output
    assert Place(s3_url).sizes() == {}


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://no-such-bucket/runs", "there is no such bucket"),
        ("nosuch://bucket/runs", "set --storage to a directory"),
    ],
)
def test_a_url_that_cannot_be_used(root: str, message: str, s3_url: str, tmp_path: Path) -> None:
    job.write_pairs(tmp_path / "pairs.jsonl")
    code, output = job.run(["--recipe", "pairs", "--data.path", str(tmp_path / "pairs.jsonl"), "--storage", root])
    assert code == 1, output
    assert message in output
    assert "Traceback" not in output
