"""A job killed in every stage and started again ends in the numbers of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

# Seconds into each stage: in the middle of training and of the reference pass, at once where a stage is short.
KILLS = {
    "data": 0.0,
    "base": 0.5,
    "tokens": 0.0,
    "sft": 10.0,
    "reference": 5.0,
    "align": 10.0,
    "sample_policy": 5.0,
    "evaluate": 5.0,
    "register": 0.0,
    "report": 0.0,
}

AFTER = ("align", "sample_policy", "evaluate", "gate", "register", "report")
"""From the alignment on."""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_after_a_checkpoint(finished_run: FinishedRun, tmp_path: Path) -> None:
    """The alignment goes on from it; what the job leaves is what one that was not killed leaves."""
    storage = tmp_path / "runs"
    shutil.copytree(finished_run.storage, storage)
    for gone in (*(f"artifacts/{stage}" for stage in AFTER), "reports", "registry"):
        shutil.rmtree(storage / gone)
    arguments = ["--recipe", str(finished_run.recipe), "--storage", str(storage), "--checkpoint.every_steps", "2"]
    process = job.start(arguments, tmp_path / "killed.log")
    try:
        deadline = time.monotonic() + 240
        while not list(storage.glob("checkpoints/align-*/step-*")):
            assert process.poll() is None, (tmp_path / "killed.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "killed.log").read_text()
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list(storage.glob("artifacts/align/*")), "killed too late to mean anything"
    code, output = job.run(arguments)
    assert code == 0, output
    assert "goes on from step" in output
    assert job.summary(storage)["evaluation"] == job.summary(finished_run.storage)["evaluation"]
    ours, theirs = (next(one.glob("artifacts/align/*")) for one in (storage, finished_run.storage))
    for name in ("training.json", "metrics.jsonl", "model/model.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert not list(storage.glob("checkpoints/*")), "a committed training needs none"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_in_every_stage(finished_run: FinishedRun, tmp_path: Path) -> None:
    killed_in(tuple(KILLS), finished_run, tmp_path)


def killed_in(stages: Sequence[str], finished_run: FinishedRun, tmp_path: Path) -> None:
    arguments = ["--recipe", str(finished_run.recipe), "--storage", str(tmp_path / "runs")]
    committed: set[str] = set()
    for stage in stages:
        log = tmp_path / f"killed-in-{stage}.log"
        job.kill_in_stage(arguments, stage, KILLS[stage], log)
        output = log.read_text()
        for done in committed:
            assert f"= {done}  reused" in output, f"{done} was computed again after the kill before {stage}"
        if stage in ("sft", "align"):  # long ones: there the kill must have come in the middle
            assert f"✓ {stage}" not in output, "killed too late to mean anything"
        committed |= {name for name in job.STAGES if f"✓ {name}" in output}
        for name in job.STAGES:
            found = list((tmp_path / "runs" / "artifacts" / name).glob("*"))
            assert all((path / "manifest.json").is_file() for path in found), f"half an artefact of {name}"
    code, output = job.run(arguments)
    assert code == 0, output
    assert job.summary(tmp_path / "runs") == job.summary(finished_run.storage)
