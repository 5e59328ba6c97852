"""Figures against values worked by hand, properties, and the coverage of the intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.evaluation.statistics import (
    Estimate,
    compare_scores,
    loss_avoided_per_1000,
    lower_quantile,
    lower_tail_mean,
    ratio_estimates,
    unseen_share_bound,
)

scores = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-100, 100))


def compare(reference: np.ndarray, policy: np.ndarray, below: float | None = None) -> dict[str, dict[str, Estimate]]:
    return compare_scores(reference, policy, tail_fraction=0.1, incident_below=below, resamples=500)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, 1.0),  # half of the first value's mass of 0.2
        (0.2, 1.0),
        (0.3, 4 / 3),  # (1 + 0.5 * 2) / 1.5
        (0.5, 1.6),  # (1 + 2 + 0.5 * 2) / 2.5
        (0.999999, 4.0),
    ],
)
def test_tail_mean_by_hand(fraction: float, expected: float) -> None:
    ordered = np.array([1.0, 2.0, 2.0, 5.0, 10.0])
    assert lower_tail_mean(ordered, fraction) == pytest.approx(expected, abs=1e-4)


def test_quantile_by_hand() -> None:
    """5% of 20 values is exactly the first; of 21 it needs the second; 0.1 * 30 is not rounded up to 4."""
    assert lower_quantile(np.arange(20.0), 0.05) == 0.0
    assert lower_quantile(np.arange(21.0), 0.05) == 1.0
    assert lower_quantile(np.arange(30.0), 0.1) == 2.0


@given(scores, st.floats(0.01, 0.99))
def test_tail_mean_lies_between_minimum_and_mean(values: np.ndarray, fraction: float) -> None:
    ordered = np.sort(values)
    tail = float(lower_tail_mean(ordered, fraction))
    assert ordered[0] - 1e-9 <= tail <= ordered.mean() + 1e-9
    assert tail <= float(lower_tail_mean(ordered, min(1.0, fraction * 1.5))) + 1e-9


@given(scores, st.floats(0.01, 0.99))
def test_tail_mean_is_the_rockafellar_uryasev_optimum(values: np.ndarray, fraction: float) -> None:
    """CVaR of the lower tail is max over c of c - E[(c - X)+] / fraction, attained at a sample."""
    best = max(c - np.maximum(c - values, 0).mean() / fraction for c in values)
    assert float(lower_tail_mean(np.sort(values), fraction)) == pytest.approx(best, abs=1e-6)


def test_figures_and_difference_by_hand() -> None:
    reference = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, -1.0], [5.0, 6.0], [7.0, 8.0]])
    result = compare(reference, reference + 1.0, below=0.5)
    assert {name: one.value for name, one in result["reference"].items()} == {
        "mean": 3.5,
        "tail_quantile": -1.0,
        "tail_mean": -1.0,
        "incident_share": 0.2,
        "worst": -1.0,
    }
    assert result["difference"]["mean"].value == pytest.approx(1.0)
    assert result["difference"]["mean"].low == pytest.approx(1.0)
    assert result["difference"]["mean"].high == pytest.approx(1.0)
    assert result["difference"]["incident_share"].value == pytest.approx(-0.1)
    assert result["policy"]["worst"] == Estimate(0.0)


def test_an_incident_is_strictly_below_the_threshold() -> None:
    result = compare(np.array([[-0.5, -0.51], [0.0, 0.0]]), np.zeros((2, 2)), below=-0.5)
    assert result["reference"]["incident_share"].value == 0.25


def test_constant_scores_have_an_interval_of_no_width() -> None:
    result = compare(np.full((12, 3), 0.1), np.full((12, 3), 0.1), below=-0.5)
    for side in result.values():
        for name, one in side.items():
            if name != "worst":
                assert one.low == pytest.approx(one.value, abs=1e-12)
                assert one.high == pytest.approx(one.value, abs=1e-12)
                assert one.sign in ((0,) if one.value == 0 else (0, 1))


def test_equal_models_never_differ_clearly() -> None:
    sample = np.random.default_rng(1).normal(size=(20, 4))
    assert all(one.sign == 0 for one in compare(sample, sample, below=0.0)["difference"].values())


def test_one_prompt_has_no_interval() -> None:
    assert compare(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))["policy"]["mean"] == Estimate(1.5)


def test_intervals_repeat_exactly() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 15, 2))
    assert compare(first, second, 0.0) == compare(first, second, 0.0)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float64, (8, 2), elements=st.floats(-5, 5)), st.floats(-3, 3))
def test_a_shift_moves_every_interval_with_it(sample: np.ndarray, shift: float) -> None:
    plain, moved = compare(sample, sample)["policy"], compare(sample, sample + shift)["policy"]
    for name, one in plain.items():
        assert moved[name].value == pytest.approx(one.value + shift, abs=1e-9)
        if one.low is not None:
            assert moved[name].low == pytest.approx(one.low + shift, abs=1e-9)
            assert one.low <= moved[name].high - shift + 1e-9


def test_resampling_prompts_covers_the_mean_although_seeds_are_alike() -> None:
    """Samples of a prompt share most of their variance: an interval over single samples would cover far less
    than 95% (its width is half as large). 300 simulations: 0.90 is 4 standard errors below 0.95."""
    rng = np.random.default_rng(3)
    covered = pooled = 0
    for _ in range(300):
        sample = rng.normal(size=(40, 1)) + 0.2 * rng.normal(size=(40, 4))
        both = compare_scores(sample, sample, tail_fraction=0.1, incident_below=None, resamples=300)
        one = both["policy"]["mean"]
        covered += one.low <= 0 <= one.high
        flat = sample.reshape(-1, 1)
        one = compare_scores(flat, flat, tail_fraction=0.1, incident_below=None, resamples=300)["policy"]["mean"]
        pooled += one.low <= 0 <= one.high
    assert covered / 300 > 0.90
    assert pooled / 300 < 0.80


def test_a_paired_difference_is_narrower_than_the_models_own_intervals() -> None:
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(60, 4))
    result = compare(reference, reference + 0.1 + 0.01 * rng.normal(size=(60, 4)))
    width = {side: result[side]["mean"].high - result[side]["mean"].low for side in result}
    assert width["difference"] < 0.1 * width["policy"]
    assert result["difference"]["mean"].sign == 1


def test_ratios_weigh_groups_by_their_size() -> None:
    """(1 + 0) / (4 + 1), not the mean of 1/4 and 0; an undefined ratio is left out."""
    hits = {"share": np.array([1.0, 0.0]), "none": np.zeros(2)}
    counts = {"share": np.array([4.0, 1.0]), "none": np.zeros(2)}
    result = ratio_estimates(hits, counts, resamples=200)
    assert set(result) == {"share"}
    assert result["share"].value == pytest.approx(0.2)
    assert result["share"].low == 0.0
    assert result["share"].high == pytest.approx(0.25)


def test_a_group_without_denominator_does_no_harm() -> None:
    result = ratio_estimates({"x": np.array([2.0, 0.0])}, {"x": np.array([1.0, 0.0])}, resamples=200)["x"]
    assert (result.value, result.low, result.high) == (2.0, 2.0, 2.0)


def test_loss_avoided_by_hand() -> None:
    """2 points fewer incidents (between 1 more and 5 fewer) at 30 each: 600, between -300 and 1,500."""
    result = loss_avoided_per_1000(Estimate(-0.02, -0.05, 0.01), 30.0)
    assert (result.value, result.low, result.high) == pytest.approx((600.0, -300.0, 1500.0))


def test_nothing_seen_in_eighty_prompts_is_not_nothing() -> None:
    assert unseen_share_bound(80) == pytest.approx(3 / 80, rel=0.03)
