"""Bounds against what is known exactly, and where a plainer method would be wrong."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.statistics import FloatArray, lower_tail_mean
from pipeline.release.bounds import (
    Ratio,
    Resampled,
    TailGap,
    drawn_level,
    own_threshold,
    resample,
    units_for,
    unseen_share,
)

DRAWS = 4000


def mean(values: FloatArray, worst: float) -> Ratio:
    return Ratio(values, np.ones_like(values), worst, 1.0)


def one(figure: Ratio | TailGap, units: int, draws: int = DRAWS) -> Resampled:
    return resample([figure], units, draws)[0]


@pytest.mark.parametrize(("units", "events"), [(20, 0), (20, 3), (80, 1), (300, 12), (50, 50)])
def test_for_zeros_and_ones_it_is_clopper_and_pearson(units: int, events: int) -> None:
    """At the level of the draws exactly (but for their noise); never below that of the confidence asked for."""
    values = np.zeros(units)
    values[:events] = 1.0
    bound = one(mean(values, 1.0), units, 20_000).upper(0.95)
    exact = [
        stats.beta.ppf(level, events + 1, units - events) if events < units else 1.0
        for level in (0.95, 1 - drawn_level(0.95, 20_000))
    ]
    assert bound >= exact[0] - 1e-12
    assert bound == pytest.approx(exact[1], rel=0.02)


def test_no_event_is_not_no_risk() -> None:
    """Differences of zero throughout: a percentile bootstrap would end at zero."""
    resampled = one(mean(np.zeros(80), 2.0), 80)
    assert resampled.upper(0.95) == pytest.approx(2 * unseen_share(80, 0.95, DRAWS), rel=1e-9)
    assert resampled.scatter(0.95) == 0.0


def test_units_for_a_share_by_hand() -> None:
    """0.95^n falls below the level of the draws: 4,000 give 0.04438, and ln(0.04438)/ln(0.95) is 60.7."""
    assert drawn_level(0.95, DRAWS) == pytest.approx(177.5 / 4000)
    assert units_for(0.05, 0.95, DRAWS) == 61
    assert unseen_share(61, 0.95, DRAWS) <= 0.05 < unseen_share(60, 0.95, DRAWS)
    assert units_for(1.0, 0.95, DRAWS) == 1


def test_a_ratio_is_bounded_as_the_mean_that_it_stands_for() -> None:
    """Its bound b is where that on the mean of top - b * bottom is zero."""
    rng = np.random.default_rng(1)
    top, bottom = rng.exponential(size=60), rng.uniform(1, 5, 60)
    bound = one(Ratio(top, bottom, 20.0, 5.0), 60).upper(0.95)
    assert one(mean(top - bound * bottom, 20.0 - bound * 5.0), 60).upper(0.95) == pytest.approx(0.0, abs=1e-9)
    assert bound > top.sum() / bottom.sum()


@given(
    st.integers(2, 25), st.integers(1, 3), st.sampled_from([0.05, 0.1, 0.5]), st.sampled_from([2, 3, 20]),
    st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tail_gap_by_its_definition(units: int, seeds: int, fraction: float, levels: int, seed: int) -> None:
    """Sample by sample, with the unseen unit's: the gap is no more than the figure, which is the one described."""
    rng = np.random.default_rng(seed)
    own, other = rng.choice(np.linspace(-1, 1, levels), (2, units, seeds))
    weights = rng.dirichlet(np.ones(units + 1), 5)
    with_unseen, seen_alone = TailGap(own, other, fraction, -1.0, 1.0).weighted(weights)
    for row, figure, alone in zip(weights, with_unseen, seen_alone, strict=True):
        by_sample = np.append(np.repeat(row[:-1] / seeds, seeds), row[-1])
        low, high = np.append(own, -1.0), np.append(other, 1.0)
        equal = np.append(np.full(units * seeds, 1 / seeds), 1.0) / (units + 1)
        at = [_quantile(np.append(other, -1.0), shares, fraction) for shares in (by_sample, equal)]
        least = min(t - float(by_sample @ np.maximum(t - low, 0.0)) / fraction for t in at)
        assert figure == pytest.approx(min(_tail_mean(high, by_sample, fraction) - least, 2.0), abs=1e-9)
        assert figure >= _tail_mean(high, by_sample, fraction) - _tail_mean(low, by_sample, fraction) - 1e-9
        left = by_sample[:-1] / by_sample[:-1].sum()
        gap = _tail_mean(other.ravel(), left, fraction) - _tail_mean(own.ravel(), left, fraction)
        assert alone >= gap - 1e-9


def test_the_tail_gap_of_equal_models_is_zero_and_its_value_is_the_plain_one() -> None:
    rng = np.random.default_rng(2)
    own, other = rng.uniform(-1, 1, (2, 40, 3))
    same = one(TailGap(own, own, 0.1, -1.0, 1.0), 40)
    assert np.allclose(same.seen, 0.0)
    plain = [lower_tail_mean(np.sort(scores, axis=None), 0.1) for scores in (other, own)]
    assert TailGap(own, other, 0.1, -1.0, 1.0).value() == pytest.approx(plain[0] - plain[1])


def test_a_far_better_candidate_needs_a_threshold_of_its_own() -> None:
    """A comparator with a fifth of its scores at the low end gives a t that says nothing of good scores."""
    rng = np.random.default_rng(7)
    good = rng.uniform(0.3, 0.9, (400, 2))
    bad = np.where(np.arange(400)[:, None] < 80, -1.0, good)
    theirs, own = (
        one(TailGap(good, bad, 0.1, -1.0, 1.0, threshold), 400) for threshold in (None, own_threshold(good, 0.1))
    )
    assert own.value == theirs.value == pytest.approx(-1.33, abs=0.05)
    assert theirs.upper(0.95) == pytest.approx(0.0)
    assert own.value < own.upper(0.95) < -1.1


def test_equal_input_gives_equal_output_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    own, other = rng.uniform(-1, 1, (2, 30, 2))
    figures = [TailGap(own, other, 0.1, -1.0, 1.0), mean(own[:, 0], 1.0)]
    whole = resample(figures, 30, 1000)
    monkeypatch.setattr("pipeline.release.bounds._CHUNK_VALUES", 30 * 2 * 64)
    for first, again in zip(whole, resample(figures, 30, 1000), strict=True):
        assert np.allclose(first.with_unseen, again.with_unseen)
        assert np.allclose(first.seen, again.seen)


def test_too_few_draws_for_a_bound_are_no_bound() -> None:
    assert one(mean(np.zeros(20), 1.0), 20, 500).upper(0.9999) == float("inf")


@pytest.mark.parametrize("confidence", [0.8, pytest.param(0.95, marks=pytest.mark.long)])
def test_a_candidate_of_which_the_tail_lies_at_the_low_end(confidence: float) -> None:
    """The distribution for which the gap of two weighted tail means breaks its level; the figure here keeps it."""
    kinds = np.array([-1.0, 0.208, 0.046, -1.0]), np.array([0.032, -0.152, -0.483, -0.51])
    shares, units = np.array([0.0821, 0.4216, 0.4766, 0.0197]), 200
    truth = _tail_mean(kinds[1], shares, 0.1) - _tail_mean(kinds[0], shares, 0.1)
    rng = np.random.default_rng(4)
    passed, naive, evaluations = 0, 0, 200 if confidence < 0.9 else 1000
    for _ in range(evaluations):
        drawn = rng.choice(4, size=(units, 1), p=shares)
        own, other = kinds[0][drawn], kinds[1][drawn]
        passed += one(TailGap(own, other, 0.1, -1.0, 1.0), units, 600).upper(confidence) <= truth
        naive += _naive_bound(own[:, 0], other[:, 0], rng, confidence) <= truth
    least: Callable[[int], float] = lambda events: stats.beta.ppf(0.01, events, evaluations - events + 1)  # noqa: E731
    assert least(passed or 1) <= 1 - confidence
    assert passed > 0
    assert least(naive) > 1 - confidence


def _naive_bound(own: FloatArray, other: FloatArray, rng: np.random.Generator, confidence: float) -> float:
    """Of the gap of the two weighted tail means, weights summed over equal scores."""
    weights = rng.dirichlet(np.ones(len(own) + 1), 400)
    sides = []
    for scores, unseen in ((own, -1.0), (other, 1.0)):
        levels, which = np.unique(np.append(scores, unseen), return_inverse=True)
        by_level = weights @ np.eye(len(levels))[which]
        reached = np.minimum(np.cumsum(by_level, axis=1), 0.1)
        sides.append(np.diff(reached, axis=1, prepend=0.0) @ levels / 0.1)
    return float(np.quantile(sides[1] - sides[0], confidence, method="higher"))


def _tail_mean(scores: FloatArray, weights: FloatArray, fraction: float) -> float:
    order = np.argsort(scores, kind="stable")
    reached = np.minimum(np.cumsum(weights[order]), fraction)
    return float(np.diff(reached, prepend=0.0) @ scores[order] / fraction)


def _quantile(scores: FloatArray, weights: FloatArray, level: float) -> float:
    order = np.argsort(scores, kind="stable")
    return float(scores[order][np.argmax(np.cumsum(weights[order]) >= level - 1e-12)])
