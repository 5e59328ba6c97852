"""An evaluation read from the files that the evaluate stage writes, and every way in which they cannot be used."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.tables import write_table
from pipeline.errors import EvaluationError
from pipeline.records import PairScores, ScoredSample
from pipeline.release.evidence import check_comparable, read_evidence
from tests.unit.release.evaluations import evidence, pair, sample, written

SAMPLES = [
    sample(model, prompt, seed, score + 0.1 * seed + (0.05 if model == "policy" else 0.0), text)
    for model, text in (("policy", "one two three four one two three four"), ("reference", "a quiet film"))
    for prompt, score in (("pa", -0.7), ("pb", 0.4), ("pc", 0.1))
    for seed in (0, 1)
]
PAIRS = [pair("r3", "g2", drift=-1e-9), pair("r1", "g1", drift=3.0, rise=0.1), pair("r2", "g1")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return written(tmp_path / "evaluation", SAMPLES[::-1], PAIRS)


def test_arrays_by_hand(directory: Path) -> None:
    """Rows in any order; eight words have five sequences of four, of which the last repeats the first."""
    found = read_evidence(directory)
    assert (found.prompts, found.seeds, found.prompt_set) == (("pa", "pb", "pc"), (0, 1), "set")
    assert (found.split, found.primary_scorer, found.tail_fraction) == ("test", "vader", 0.1)
    assert found.incident_below == -0.5
    assert np.allclose(found.reference_scores, [[-0.7, -0.6], [0.4, 0.5], [0.1, 0.2]])
    assert np.allclose(found.scores, found.reference_scores + 0.05)
    assert np.allclose(found.repetition, 0.2)
    assert np.allclose(found.reference_repetition, 0.0)
    assert np.all(found.length == 37)
    assert np.all(found.reference_length == 12)
    assert found.pairs == ("r1", "r2", "r3")
    assert found.groups.tolist() == [0, 0, 1]
    assert found.num_groups == 2
    assert found.drift.tolist() == [3.0, 2.0, 0.0]
    assert np.allclose(found.bits, np.array([110.0, 100.0, 100.0]) / math.log(2))
    assert np.allclose(found.by_group(found.reference_bits), np.array([200.0, 100.0]) / math.log(2))


@pytest.mark.parametrize("name", ["evaluation.json", "samples.parquet", "pairs.parquet"])
def test_a_missing_or_damaged_file_is_named(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"{")
    with pytest.raises(EvaluationError, match=name):
        read_evidence(directory)
    (directory / name).unlink()
    with pytest.raises(EvaluationError, match=name):
        read_evidence(directory)


def _samples(change: Any) -> Any:
    return lambda at: write_table(at / "samples.parquet", change(SAMPLES), ScoredSample)


def _pairs(*pairs: PairScores) -> Any:
    return lambda at: write_table(at / "pairs.parquet", list(pairs), PairScores)


def _summary(**changed: Any) -> Any:
    def change(at: Path) -> None:
        content = json.loads((at / "evaluation.json").read_text())
        (at / "evaluation.json").write_text(json.dumps({**content, **changed}))

    return change


NOT_A_NUMBER = replace(SAMPLES[0], scores={**SAMPLES[0].scores, "vader": math.nan})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_summary(num_prompts=4), r"samples\.parquet holds 3 prompts .* is of 4"),
        (_summary(seeds=[0, 1, 2]), r"seeds \[0, 1\]"),
        (_summary(tail_fraction=None), r"evaluation\.json is no evaluation .*TypeError"),
        (_summary(prompt_set="other"), "of another set of prompts"),
        (_summary(primary_scorer="own:score"), "no finite score 'own:score'"),
        (_samples(lambda rows: []), r"samples\.parquet holds no rows"),
        (_samples(lambda rows: rows[:-1]), "reference for every prompt and seed .6., it has 5, none for prompt pc and"),
        (_samples(lambda rows: [*rows, rows[0]]), "policy for every prompt and seed .6., it has 7, some twice"),
        (_samples(lambda rows: [NOT_A_NUMBER, *rows[1:]]), "prompt pa and seed 0 has no finite score 'vader'"),
        (_pairs(), r"pairs\.parquet holds no rows"),
        (_pairs(pair("r1", "g1", drift=math.nan)), "held-out pair r1 has"),
        (_pairs(replace(PAIRS[0], chosen_risk={"cvar@0.5": 1.0})), "held-out pair r3 has"),
        (_pairs(replace(PAIRS[0], chosen_ref_logp=0.0, rejected_ref_logp=0.0)), "the probability one"),
    ],
)
def test_files_that_do_not_fit_are_refused(directory: Path, change: Any, message: str) -> None:
    change(directory)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_evidence(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_set": "other"}, r"prompt_set \(set and other\)"),
        ({"split": "validation"}, r"split \(test and validation\)"),
        ({"primary_scorer": "own:score"}, "primary_scorer"),
        ({"tail_fraction": 0.2}, r"tail_fraction \(0.1 and 0.2\)"),
        ({"incident_below": 0.0}, r"incident_below \(-0.5 and 0\)"),
        ({"seeds": (3, 4)}, r"seeds \(\(0, 1\) and \(3, 4\)\)"),
        ({"pairs": tuple("abcdef")}, r"held-out pairs \(6 and 6, not the same rows\)"),
        ({"groups": np.array([0, 0, 0, 1, 1, 2])}, "held-out pairs"),
        ({"prompts": ("x", "y", "z")}, "prompts"),
        ({"reference_scores": np.full((3, 2), 0.1)}, r"the reference's outputs \(6 of 6\)"),
        ({"reference_length": np.array([[100, 100], [100, 99], [100, 100]])}, r"outputs \(1 of 6\)"),
        ({"split": "validation", "incident_below": 0.0}, "split .*, incident_below"),
    ],
)
def test_evaluations_that_cannot_be_paired_are_refused(changed: dict[str, Any], message: str) -> None:
    scores = np.zeros((3, 2))
    with pytest.raises(EvaluationError, match=f"cannot be compared, because these differ: .*{message}"):
        check_comparable(evidence(scores, scores), evidence(scores, scores, **changed))


def test_another_policy_of_the_same_prompts_can_be_paired() -> None:
    scores = np.zeros((3, 2))
    check_comparable(evidence(scores, scores), evidence(scores - 0.5, scores, drift=np.ones(6)))
