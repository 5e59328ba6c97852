"""A run as arrays, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import EvaluationError
from pipeline.study.runs import read_run

sys.path.insert(0, str(Path(__file__).parent))
import made


def test_a_run_as_arrays(tmp_path: Path) -> None:
    """Pairs by film and row: c of film0, then a and b of film1; b prefers the rejected response."""
    run = read_run(made.files(tmp_path, method="ra_dpo2", seed=3))
    assert (run.seed, run.reference, run.name, run.align_seconds) == (3, "ref", "one", 12.5)
    assert (run.tail_fraction, run.incident_below) == (0.1, -0.5)
    assert run.scores.tolist() == [[0.5, 0.25], [-0.75, 1.0]]
    assert run.reference_scores.tolist() == [[-0.5, -0.25], [0.75, -1.0]]
    assert (run.repetition == 0.25).all()
    assert (run.prompts, run.prompt_groups) == (("p0", "p1"), ("film0", "film1"))
    pairs = run.pairs
    assert (pairs.row_ids, pairs.groups) == (("c", "a", "b"), ("film0", "film1", "film1"))
    assert pairs.reward_correct.tolist() == [1.0, 1.0, 0.0]
    assert pairs.chosen_kl.tolist() == [1.5, 0.5, 0.5]
    assert pairs.rejected_kl.tolist() == [3.0, 1.0, 1.0]
    assert pairs.chosen_change.tolist() == [2.0, 2.0, -2.0]
    assert pairs.bits.tolist() == pytest.approx([made.bits(-20), made.bits(-20), made.bits(-23)])
    assert pairs.reference_bits.tolist() == pytest.approx([made.bits(-20)] * 3)
    assert pairs.bytes.tolist() == [30.0] * 3


def test_a_summary_without_seconds(tmp_path: Path) -> None:
    path = made.files(tmp_path)
    summary = json.loads(path.read_text())
    del summary["timing"]
    path.write_text(json.dumps(summary))
    assert read_run(path).align_seconds is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": made.SAMPLES[1:]}, "no complete grid"),
        ({"samples": made.SAMPLES[:4]}, "no complete grid"),
        ({"samples": [replace(made.SAMPLES[0], scores={"vader": 0.0}), *made.SAMPLES[1:]]}, "repetition"),
        ({"pairs": []}, "no held-out pairs"),
        ({"pairs": [made.pair("a", "film0", kl=float("nan"))]}, "chosen KL is not finite"),
        ({"pairs": [made.pair("a", "film0", chosen=float("-inf"))]}, "chosen_logp is not finite"),
        ({"prompts": ["film0"]}, "KeyError: 'p1'"),
        ({"primary_scorer": "length"}, "primary scorer is length"),
    ],
)
def test_a_run_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_run(made.files(tmp_path, **changed))


@pytest.mark.parametrize("file", ["samples.parquet", "pairs.parquet", "prompts-test.parquet"])
@pytest.mark.parametrize("damage", ["missing", "damaged", "another version"])
def test_a_file_that_cannot_be_used(tmp_path: Path, file: str, damage: str) -> None:
    path = made.files(tmp_path)
    (there,) = tmp_path.rglob(file)
    if damage == "missing":
        there.unlink()
    elif damage == "damaged":
        there.write_bytes(b"PAR1")
    else:
        other = "pairs.parquet" if file == "samples.parquet" else "samples.parquet"
        there.write_bytes(next(tmp_path.rglob(other)).read_bytes())
    with pytest.raises(EvaluationError, match=file) as caught:
        read_run(path)
    assert damage in str(caught.value)


def test_a_summary_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_run(tmp_path / "reports" / "one" / "summary.json")
    path = made.files(tmp_path)
    elsewhere = tmp_path / "summary.json"
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(EvaluationError, match="does not lie in"):
        read_run(elsewhere)
    for text in ("[]", "{}", "{", '{"config": {}}', '{"config": null}'):
        path.write_text(text)
        with pytest.raises(EvaluationError, match="no run of this version"):
            read_run(path)
