"""The benchmark compares like with like: all subjects of one loss give that loss and its gradients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.bench.config import BASELINE, BenchmarkConfig
from pipeline.bench.report import figures
from pipeline.bench.subjects import SLOW, TEXTS, _quantile_rule, _sorted_cvar, make_inputs, subjects
from pipeline.catalogue import MEASURES
from pipeline.config import MeasureName
from pipeline.risk.law import Law
from pipeline.risk.measures import Measure

CONFIG = BenchmarkConfig(positions=32, pairs=2, hidden=12, level=0.3, top_k=301, block_bytes=50_000)


def test_one_loss_by_four_routes() -> None:
    """With k = V the top-k record is exact too."""
    inputs = make_inputs(CONFIG, 301, torch.device("cpu"))
    found = []
    for name in ("pair_cvar", "sequence_cvar", "pair_cvar_top_k", "sorted_cvar"):
        inputs.hidden.grad = inputs.weight.grad = None
        loss = subjects(CONFIG)[name](inputs)
        loss.backward()
        found.append((loss.detach(), inputs.hidden.grad, inputs.weight.grad))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_rules_are_the_shipped_measures() -> None:
    torch.manual_seed(0)
    log_ref, log_pi = (2 * torch.randn(2, 6, 77, dtype=torch.float64)).log_softmax(-1)
    law = Law.between(log_ref, log_pi)
    for name, value in (
        ("cvar", _sorted_cvar(law.p, law.ratio, 0.3)),
        ("vocab_quantile", _quantile_rule(law.p, law.ratio, 0.3, parts=1)),
    ):
        torch.testing.assert_close(Measure(name, 0.3).of(law).value, value)
    even = Law.between(log_ref[:, :-1].log_softmax(-1), log_pi[:, :-1].log_softmax(-1))
    halves = _quantile_rule(even.p, even.ratio, 0.3, parts=2)
    torch.testing.assert_close(Measure("vocab_quantile_halves", 0.3).of(even).value, halves)


def test_ratios_are_taken_within_rounds() -> None:
    seconds = {BASELINE: [1.0, 2.0, 4.0], "pair_cvar": [1.5, 3.0, 10.0], "sorted_cvar": [5.0, None, None]}
    records = {record["subject"]: record for record in figures(CONFIG, 99, seconds, {"pair_cvar": 7})}
    assert records["pair_cvar"]["ratio"] == 1.5
    assert (records["pair_cvar"]["ratio_lowest"], records["pair_cvar"]["ratio_highest"]) == (1.5, 2.5)
    assert records["pair_cvar"]["peak_bytes"] == 7
    assert (records["sorted_cvar"]["rounds"], records["sorted_cvar"]["ratio"]) == (1, 5.0)


def test_every_subject_has_its_text_and_every_measure_its_name() -> None:
    assert set(TEXTS) == set(subjects(CONFIG)) >= set(SLOW)
    assert set(get_args(MeasureName)) == set(MEASURES)


@pytest.mark.long
def test_the_job_writes_its_figures(tmp_path: Path) -> None:
    """The real job on a real Ray, at a size that takes no time."""
    output = tmp_path / "figures.json"
    job = Path(__file__).resolve().parents[3] / "jobs" / "benchmark.py"
    sizes = {"vocabularies": 64, "positions": 16, "pairs": 2, "hidden": 8, "rounds": 2, "slow_rounds": 1, "threads": 1}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, str(job), "head", *options, "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(output.read_text())
    assert [record["subject"] for record in found["figures"]] == list(TEXTS)
    assert all(record["ratio"] > 0 for record in found["figures"])
    assert "plain cross-entropy head" in result.stdout


@pytest.mark.parametrize("options", [["--positions", "100"], ["--threads", "0"], ["--vocabulary", "5"]])
def test_a_wrong_option_is_refused(options: list[str]) -> None:
    job = Path(__file__).resolve().parents[3] / "jobs" / "benchmark.py"
    result = subprocess.run([sys.executable, str(job), "head", *options], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert options[0].removeprefix("--") in result.stderr
    assert "Traceback" not in result.stderr
