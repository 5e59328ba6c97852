"""Exact bounds: against the binomial law itself, and at the ends."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binom

from pipeline.realign.accuracy import Accuracy, least_drop


@pytest.mark.parametrize(("right", "pairs"), [(1, 5), (31, 64), (63, 64), (500, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_each_bound_is_where_the_law_leaves_so_much_beyond_it(right: int, pairs: int, confidence: float) -> None:
    one = Accuracy(right, pairs)
    assert binom.cdf(right, pairs, one.upper(confidence)) == pytest.approx(1 - confidence, rel=1e-6)
    assert binom.sf(right - 1, pairs, one.lower(confidence)) == pytest.approx(1 - confidence, rel=1e-6)
    assert one.lower(confidence) < one.value < one.upper(confidence)


def test_at_the_ends() -> None:
    assert Accuracy(0, 9).lower(0.95) == 0
    assert Accuracy(9, 9).upper(0.95) == 1
    assert Accuracy(9, 9).lower(0.95) == pytest.approx(0.05 ** (1 / 9))
    for right, pairs in ((0, 0), (4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="no share"):
            Accuracy(right, pairs)


def test_a_drop_is_stated_wrongly_at_most_so_often() -> None:
    """Both shares are 0.7 in truth: every outcome of 40 and 60 pairs with its exact probability."""
    wrong = math.fsum(
        binom.pmf(before, 40, 0.7) * binom.pmf(after, 60, 0.7)
        for before in range(41)
        for after in range(61)
        if least_drop(Accuracy(before, 40), Accuracy(after, 60), 0.95) > 0
    )
    assert 0 < wrong <= 0.05
    assert least_drop(Accuracy(90, 100), Accuracy(30, 100), 0.95) == pytest.approx(0.826 - 0.400, abs=0.02)
