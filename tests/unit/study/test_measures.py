"""Figures from weights of films: the same as those of the evaluation, and by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.pairs import summarise_pairs
from pipeline.evaluation.statistics import lower_tail_mean, score_figures
from pipeline.study.measures import (
    MEASURES,
    OF_REFERENCE,
    figures,
    films_of,
    policy_sums,
    reference_sums,
    weighted_tail_mean,
)
from pipeline.study.runs import read_run

sys.path.insert(0, str(Path(__file__).parent))
import made

quick = settings(max_examples=50, deadline=None, derandomize=True)


def test_figures_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = read_run(made.files(tmp_path))
    films = films_of(run)
    found = {name: one.item() for name, one in figures(policy_sums(run, films), np.ones((1, 2))).items()}
    assert set(found) == {measure.name for measure in MEASURES}
    of_scores = score_figures(run.scores.reshape(1, -1), 0.1, -0.5)
    of_pairs = summarise_pairs(made.PAIRS, "dpo", "kl", resamples=10)
    expected = {
        "mean": of_scores["mean"].item(),
        "tail": of_scores["tail_mean"].item(),
        "incidents": of_scores["incident_share"].item(),
        "repetition": 0.25,
        "reward_accuracy": of_pairs["reward_accuracy"]["value"],
        "bits_per_byte": of_pairs["bits_per_byte"]["policy"]["value"],
        "drift": of_pairs["chosen_risk"]["kl"]["value"],
        "rejected_drift": of_pairs["rejected_risk"]["kl"]["value"],
        "chosen_change": of_pairs["chosen_logp_change"]["value"],
    }
    assert found == pytest.approx(expected)
    of_reference = {name: one.item() for name, one in figures(reference_sums(run, films), np.ones((1, 2))).items()}
    assert set(of_reference) == set(OF_REFERENCE)
    assert of_reference["bits_per_byte"] == pytest.approx(of_pairs["bits_per_byte"]["reference"]["value"])
    assert of_reference["mean"] == pytest.approx(-found["mean"])


def test_a_film_counts_as_often_as_it_was_drawn(tmp_path: Path) -> None:
    """film0 twice and film1 never, then once each with film0 a second time: 0.5, 0.25 and -0.75, 1.0; drifts 1.5 and
    0.5, 0.5."""
    run = read_run(made.files(tmp_path))
    found = figures(policy_sums(run, films_of(run)), np.array([[2.0, 0.0], [2.0, 1.0]]))
    assert found["mean"].tolist() == pytest.approx([0.375, (0.75 * 2 + 0.25) / 6])
    assert found["incidents"].tolist() == pytest.approx([0.0, 1 / 6])
    assert found["tail"].tolist() == pytest.approx([0.25, -0.75])
    assert found["drift"].tolist() == pytest.approx([1.5, (2 * 1.5 + 2 * 0.5) / 4])
    assert found["reward_accuracy"].tolist() == pytest.approx([1.0, 3 / 4])


def test_films_without_prompts_or_without_pairs(tmp_path: Path) -> None:
    """A draw of nothing but such films has no figure of its own; that of all films stands in."""
    pairs = [made.pair("a", "film0", kl=1.0), made.pair("b", "film2", kl=3.0)]
    run = read_run(made.files(tmp_path, pairs=pairs))
    assert films_of(run) == ("film0", "film1", "film2")
    found = figures(policy_sums(run, films_of(run)), np.array([[0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]))
    assert found["drift"].tolist() == pytest.approx([2.0, 3.0, 2.0])
    assert found["mean"].tolist() == pytest.approx([0.125, 0.25, 0.25])
    assert found["tail"].tolist() == pytest.approx([-0.75, -0.75, -0.75])


@quick
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 4)), min_size=1, max_size=20).filter(
        lambda rows: any(count for _, count in rows)
    ),
    st.floats(0.02, 0.98),
)
def test_the_tail_of_weighted_values_is_that_of_repeated_ones(rows: list[tuple[float, int]], fraction: float) -> None:
    values, counts = np.array(sorted(rows)).T
    repeated = np.repeat(values, counts.astype(int))
    found = weighted_tail_mean(values, counts[None], fraction)
    assert found.item() == pytest.approx(lower_tail_mean(repeated, fraction).item(), abs=1e-7)
