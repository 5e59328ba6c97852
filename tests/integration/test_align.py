"""The whole job on a tiny run: real Ray, real workers, real files."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun


def artifact(storage: Path, stage: str) -> Path:
    (path,) = (storage / "artifacts" / stage).iterdir()
    return path


@pytest.mark.timeout(600)
def test_a_run_leaves_everything_a_user_looks_for(finished_run: FinishedRun) -> None:
    (directory,) = (finished_run.storage / "reports").iterdir()
    last = finished_run.output.strip().splitlines()[-1]
    assert last == f"report:  {directory / 'report.html'}"
    for name in ("report.html", "summary.json", "metrics.jsonl", "dropped.jsonl", "run.yaml"):
        assert (directory / name).is_file(), name
    for stage in job.STAGES:
        assert f"✓ {stage}" in finished_run.output
    assert "Traceback" not in finished_run.output
    assert not any((finished_run.storage / "staging").iterdir()), "nothing half-written stays behind"

    policy = artifact(finished_run.storage, "align") / "model"
    assert f"policy:  {policy}" in finished_run.output
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    inputs = tokenizer("What about film 1?\n", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.timeout(600)
def test_the_numbers_hang_together(finished_run: FinishedRun) -> None:
    summary = job.summary(finished_run.storage)
    first = summary["training"]["first_train"]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert summary["training"]["steps"] == 10
    record = json.loads((artifact(finished_run.storage, "align") / "training.json").read_text())
    assert record["workers"] == 2
    assert record["zero_stage"] == 3
    assert record["weights_before"] != record["weights_after"]
    tuned = json.loads((artifact(finished_run.storage, "sft") / "training.json").read_text())
    assert tuned["weights_after"] == record["weights_before"], "the policy starts as the reference, bit for bit"
    # Evaluation has both models at hand; the policy has moved, so every divergence is above zero and ordered.
    risk = summary["evaluation"]["pairs"]["chosen_risk"]
    assert 0 < risk["kl"]["value"] < risk["cvar@0.5"]["value"] < risk["cvar@0.1"]["value"]


@pytest.mark.timeout(600)
def test_a_second_run_starts_nothing(finished_run: FinishedRun) -> None:
    before = job.summary(finished_run.storage)
    started = time.monotonic()
    code, output = job.run(["--recipe", str(finished_run.recipe), "--storage", str(finished_run.storage)])
    assert code == 0, output
    assert time.monotonic() - started < 45
    assert [f"= {stage}  reused" in output for stage in job.STAGES] == [True] * len(job.STAGES)
    assert "Ray" not in output.replace("Ra-DPO", ""), "no cluster is started for nothing"
    assert job.summary(finished_run.storage) == before
