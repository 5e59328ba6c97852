"""Ranks against a baseline, and the thresholds that follow from them alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.watch.ranks import Baseline, Ordered, uniforms
from pipeline.watch.rules import rules_for, steps
from pipeline.watch.simulation import RULES, _ranks, delays, false_alarms, thresholds
from pipeline.watch.table import BASELINE, LARGEST, OUTPUTS, STREAMS
from pipeline.watch.thresholds import exceedances_allowed, largest, path, threshold, upper_bound


def test_a_rank_worked_by_hand() -> None:
    """Among (1, .2), (2, .4), (2, .6), (5, .1) the pair (2, .5) has two below it: (2 + .25) / 5 = .45."""
    ordered = Ordered.of([2.0, 5.0, 1.0, 2.0], np.array([0.6, 0.1, 0.2, 0.4]))
    assert ordered.rank(2.0, 0.5, 0.25) == pytest.approx(0.45)
    assert ordered.rank(0.0, 0.9, 0.5) == pytest.approx(0.1)
    assert ordered.rank(9.0, 0.0, 0.5) == pytest.approx(0.9)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 4), st.floats(0.01, 0.99))
def test_a_rank_counts_the_pairs_below(values: list[int], new: int, tie: float) -> None:
    ties = uniforms("a", 0, len(values))
    below = sum((value, w) < (new, tie) for value, w in zip(values, ties, strict=True))
    rank = Ordered.of([float(one) for one in values], ties).rank(float(new), tie, 0.5)
    assert rank == pytest.approx((below + 0.5) / (len(values) + 1))


@pytest.mark.parametrize("draw", ["normal", "binary", "constant"])
def test_ranks_are_uniform_whatever_the_distribution(draw: str) -> None:
    """Over many baselines, each with one new value, ranks have the uniform law (Kolmogorov-Smirnov, 5 in 10,000)."""
    rng = np.random.default_rng(0)
    of = {"normal": rng.standard_normal, "binary": lambda n: (rng.random(n) < 0.1) * 1.0, "constant": np.ones}[draw]
    found = []
    for number in range(800):
        values = of(21)
        baseline = Baseline(f"{draw} {number}", {"risk": tuple(values[:20])})
        tie, within = uniforms(baseline.seed, 20, 2)
        found.append(baseline.ordered()["risk"].rank(values[20], tie, within))
    assert stats.kstest(found, "uniform").pvalue > 5e-4


def test_numbers_of_an_output_are_its_own_and_the_same_everywhere() -> None:
    assert uniforms("seed", 7, 3).tolist() == uniforms("seed", 7, 3).tolist()
    drawn = np.concatenate([uniforms("seed", number, 2) for number in range(2000)])
    assert len(set(drawn)) == len(drawn)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert set(uniforms("seed", 1, 2)).isdisjoint(uniforms("other", 1, 2))


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30))
def test_the_path_is_the_recursion(added: list[float]) -> None:
    value, expected = 0.0, []
    for one in added:
        value = max(0.0, value + one)
        expected.append(value)
    assert path(np.array(added)).tolist() == pytest.approx(expected)


def test_bounds_of_a_probability_worked_by_hand() -> None:
    """Seen 0 times in n: 1 - 0.01^(1/n). So the least n that shows 1% with no exceedance is ln .01 / ln .99 = 458.2."""
    assert upper_bound(0, 100) == pytest.approx(1 - 0.01 ** (1 / 100))
    assert exceedances_allowed(0.01, 458) == -1
    assert exceedances_allowed(0.01, 459) == 0
    allowed = exceedances_allowed(0.001, 200_000)
    assert upper_bound(allowed, 200_000) <= 0.001 < upper_bound(allowed + 1, 200_000)


@pytest.mark.parametrize("kind", ["location", "tail"])
def test_the_table_is_what_the_simulation_gives(kind: str) -> None:
    """So many of fresh streams exceed a threshold of the table as it says: within the scatter of 1 in 10,000."""
    limit = threshold(kind, BASELINE, OUTPUTS, 0.01)  # type: ignore[arg-type]
    assert limit in [value for _, value in LARGEST[kind]]
    assert sorted(LARGEST[kind], key=lambda one: one[1], reverse=True) == list(LARGEST[kind])
    assert all(count < STREAMS for count, _ in LARGEST[kind])
    streams = 1500
    beyond = int((largest(kind, BASELINE, OUTPUTS, streams, seed=7) > limit).sum())  # type: ignore[arg-type]
    assert stats.binom.sf(beyond - 1, streams, 0.01) > 1e-4, "more than stated"
    assert stats.binom.cdf(beyond, streams, 0.005) > 1e-4, "a threshold that is needlessly high"


def test_a_threshold_of_other_sizes_is_simulated() -> None:
    limit = threshold("location", 200, 20, 0.05)
    beyond = int((largest("location", 200, 20, 2000, seed=9) > limit).sum())
    assert stats.binom.sf(beyond - 1, 2000, 0.05) > 1e-4
    assert stats.binom.cdf(beyond, 2000, 0.04) > 1e-4


def test_sorting_together_gives_the_law_of_the_gaps() -> None:
    """The simulation's ranks of any values, and the thresholds' of uniform numbers, have one law: of the largest value
    of the statistic, two samples (Kolmogorov-Smirnov, 5 in 10,000)."""
    rng = np.random.default_rng(3)
    values = [path(steps("location", _ranks(np.floor(rng.gamma(2.0, 2.0, 400)), 100, rng))).max() for _ in range(1000)]
    assert stats.ks_2samp(values, largest("location", 100, 300, 1000, seed=5)).pvalue > 5e-4


def test_rules_of_a_version() -> None:
    names = [rule.name for rule in rules_for({"risk": "up", "kl": "up", "s": "down", "length": "both"}, "s")]
    assert names == ["risk-up", "kl-up", "s-down", "length-up", "length-down", "risk-tail", "kl-tail", "s-tail"]
    tail = next(rule for rule in RULES if rule.name == "vader-tail")
    assert tail.step(0.005) > 0 > tail.step(0.5), "low scores are the bad tail"


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_promise_holds_on_streams_of_any_shape() -> None:
    """2,000 streams of 10,000 outputs for two shapes, one without ties and one of all kinds together: the share with
    any alarm is at most 1% as far as that many can tell (1 in 1,000); a shift is found within 200 outputs."""
    limits = thresholds(1000, 10_000, 0.01)
    for shape in ("lognormal", "one of each"):
        outcome = false_alarms(shape, 2000, 1000, 10_000, limits, seed=11)
        assert stats.binom.sf(outcome.alarms - 1, outcome.streams, 0.01) > 1e-3, outcome
    for shape in ("normal", "gamma"):
        assert np.median(delays(shape, 200, 1000, limits)) <= 200
