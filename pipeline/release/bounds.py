"""One-sided bounds that hold at every sample size, for bounded figures of units that are alike (prompts, groups).

The data get Dirichlet(1, ..., 1) weights (the Bayesian bootstrap), spread over the n units that were seen and over one
unit that was not, which lies at the worst value there is. The bound is a quantile of the weighted figure. Of a mean it
is the bound of N. Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Math. Methods of Statistics 14(4), 2005; for values of 0 and 1 it is Clopper and Pearson's. A percentile
bootstrap has no such unit: with differences that are zero but for a rare catastrophe, a sample without the catastrophe
has an interval of no width, and would pass.

How sure that is. For two values the bound is exact. That Gaffke's keeps its level for every bounded variable is a
conjecture without a known exception (Learned-Miller and Thomas, arXiv 1905.06208; Phan, Thomas and Learned-Miller,
"Towards Practical Mean Bounds for Small Samples", ICML 2021). Of the difference of two tail means nothing is proven: it
is bounded much like a mean, at a threshold that the comparator gives (`TailGap`). A search for distributions that break
that (climbing from random ones on two to five points, n from 10 to 200, tails of 5% to 50%) found none above the level.
`pipeline.release.simulation` measures both.

Quantiles come from a finite number of draws, so the order statistic is taken that lies beyond the true quantile with
`_SURE` certainty: an error of the draws makes a bound wider, not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.statistics import lower_tail_mean

FloatArray = NDArray[np.float64]

OWN_THRESHOLD_LEVEL = 2.0
"""A bound with an `own_threshold` is taken at the level divided by this."""

_SEED = 20505
_SURE = 0.95
_ROUNDING = 1e-12
_CHUNK_VALUES = 4_000_000
"""Numbers held at once by one figure: 32 MB."""


class Figure(Protocol):
    """A figure of n units of which larger is worse."""

    @property
    def width(self) -> int:
        """Numbers that a unit takes in memory."""

    def value(self) -> float:
        """The figure as observed."""

    def weighted(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The figure under weights ``[r, n + 1]``, the last of which is the unseen unit's: ``[r]`` with that unit, and
        ``[r]`` without it, the other weights scaled to sum to one."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """sum(top) / sum(bottom) over units; a mean when every bottom is one.

    The bound is that on a mean: the ratio exceeds a limit exactly when the mean of top - limit * bottom exceeds zero.
    """

    top: FloatArray
    """``[n]``."""
    bottom: FloatArray
    """``[n]``, not negative, with a positive sum."""
    unseen_top: float
    unseen_bottom: float
    """Of the worst unit there could be."""

    width: int = 1

    def value(self) -> float:
        return float(self.top.sum() / self.bottom.sum())

    def weighted(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        seen, unseen = weights[:, :-1], weights[:, -1]
        top, bottom = seen @ self.top, seen @ self.bottom
        with_unseen = (top + unseen * self.unseen_top) / (bottom + unseen * self.unseen_bottom)
        return with_unseen, top / bottom


@dataclass(frozen=True, eq=False)
class TailGap:
    """Mean of the lowest ``fraction`` of the comparator's samples less that of the candidate's (CVaR of a score).

    Both over all samples ``[n, seeds]``, a unit being a row. In the worst unit the candidate scores ``low`` and the
    comparator ``high`` with every seed.

    A tail mean is the largest t - E[(t - score)+] / fraction over all t, reached at the ``fraction``-quantile
    (Rockafellar and Uryasev, "Optimization of conditional value-at-risk", 2000). With weights, the comparator's is just
    that. The candidate's is taken at a t that the *comparator's* scores give: its quantile if the unseen unit were its
    worst, once with the weights and once with equal ones, whichever is the less favourable. At any t it is no more than
    the candidate's tail mean, so that the figure errs to the worse side. Taking the candidate's own quantile would
    choose t by the very sample that is judged: a candidate of which about ``fraction`` lies at the low end then passes
    at up to 2.5 times the level (and at 1.3 times where only the comparator's with the weights is taken).

    Where the candidate may score far better than the comparator, such a t says little of it. ``threshold`` gives
    another one: `own_threshold`, chosen by the candidate's sample but the same for all weights. It costs up to
    `OWN_THRESHOLD_LEVEL` of the level: where t is one of two values, each of them keeps it.
    """

    candidate: FloatArray
    comparator: FloatArray
    fraction: float
    low: float
    high: float
    threshold: float | None = None

    @property
    def width(self) -> int:
        return int(self.candidate.shape[1])

    def value(self) -> float:
        candidate, comparator = (
            lower_tail_mean(np.sort(scores, axis=None), self.fraction) for scores in (self.candidate, self.comparator)
        )
        return float(comparator - candidate)

    def weighted(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        seen, unseen, tail = weights[:, :-1], weights[:, -1], self.fraction
        order = np.argsort(self.comparator, axis=None, kind="stable")
        ordered = self.comparator.ravel()[order]
        cumulated = self._cumulated(seen, order // self.width)
        total = 1.0 - unseen
        # t for the candidate: with the unseen unit as the comparator's worst, and without it.
        masses = np.maximum(tail - unseen, 0.0), tail * total
        position = [(cumulated < mass[:, None] - _ROUNDING).sum(axis=1) for mass in masses]
        first, second = (ordered[np.minimum(at, len(ordered) - 1)] for at in position)
        first = np.where(masses[0] > 0, first, self.low)
        steady = np.full_like(total, self._steady(ordered))
        if self.threshold is not None:
            first = steady = second = np.full_like(total, self.threshold)
        *missing, alone = self._shortfalls(seen, np.stack([first, steady, second]))
        candidate = np.minimum(
            *(t - (short + unseen * (t - self.low)) / tail for t, short in zip((first, steady), missing, strict=True))
        )
        # The comparator's own tail mean, with the unseen unit as its best, and without it.
        reached = np.minimum(tail, total)
        comparator, other = (_lowest_sum(ordered, cumulated, mass) for mass in (reached, masses[1]))
        with_unseen = (comparator + (tail - reached) * self.high) / tail - candidate
        # At a t far from its own quantile the candidate's could lie below the least score.
        return np.minimum(with_unseen, self.high - self.low), (other + alone) / masses[1] - second

    def _steady(self, ordered: FloatArray) -> float:
        """The quantile of the comparator's ``ordered`` scores with an unseen worst unit that weighs as much as each."""
        units = len(self.comparator)
        level = (self.fraction * (units + 1) - 1) / units
        return float(np.quantile(ordered, level, method="inverted_cdf")) if level > 0 else self.low

    def _cumulated(self, weights: FloatArray, unit: NDArray[np.int64]) -> FloatArray:
        """Weights of the comparator's lowest samples, cumulated ``[r, some]``: all rows hold the tail."""
        count = min(int(len(unit) * 1.5 * self.fraction) + 8 * self.width, len(unit))
        while True:
            cumulated = np.cumsum(weights[:, unit[:count]], axis=1) / self.width
            if count == len(unit) or cumulated[:, -1].min() >= self.fraction:
                return np.asarray(cumulated)
            count = min(2 * count, len(unit))

    def _shortfalls(self, weights: FloatArray, thresholds: FloatArray) -> FloatArray:
        """Weighted sums of (t - candidate)+, for ``thresholds [k, r]`` of their own in every row, ``[k, r]``."""
        distinct, which = np.unique(thresholds, return_inverse=True)
        short = np.zeros((len(self.candidate), len(distinct)))
        for scores in self.candidate.T:
            short += np.maximum(distinct - scores[:, None], 0.0) / self.width
        return np.take_along_axis(weights @ short, which.reshape(thresholds.shape).T, axis=1).T


def own_threshold(candidate: FloatArray, fraction: float) -> float:
    """The ``fraction``-quantile of all samples ``[n, seeds]``, for `TailGap.threshold`."""
    return float(np.quantile(candidate, fraction, method="inverted_cdf"))


def _lowest_sum(ordered: FloatArray, cumulated: FloatArray, mass: FloatArray) -> FloatArray:
    """Sum of weight * score ``[r]`` over the lowest samples that hold a ``mass [r]``, by parts."""
    count = cumulated.shape[1]
    return np.asarray(
        ordered[count - 1] * mass - np.minimum(cumulated[:, :-1], mass[:, None]) @ np.diff(ordered[:count])
    )


@dataclass(frozen=True, eq=False)
class Resampled:
    """A figure as observed and in every draw of weights, in the same order for all figures of the same units."""

    value: float
    centre: float
    """With equal weights: the value, but for the comparator's quantile in `TailGap`."""
    with_unseen: FloatArray
    """``[resamples]``."""
    seen: FloatArray
    """``[resamples]``, without the unseen unit: how an estimate scatters about the centre."""

    def upper(self, confidence: float) -> float:
        """Upper bound on the figure; infinite when there are too few draws for so high a confidence."""
        return _upper(self.with_unseen, confidence)

    def scatter(self, confidence: float) -> float:
        """What of the distance from the centre to the bound is owed to the units that were seen, not to the unseen."""
        return _upper(self.seen, confidence) - self.centre


def resample(figures: Sequence[Figure], units: int, resamples: int) -> list[Resampled]:
    """Every figure under the same draws of weights; equal input gives equal output."""
    drawn: list[list[tuple[FloatArray, FloatArray]]] = [[] for _ in figures]
    width = max((figure.width for figure in figures), default=1)
    for weights in _weights(units, resamples, max(1, _CHUNK_VALUES // (units * width))):
        for figure, parts in zip(figures, drawn, strict=True):
            parts.append(figure.weighted(weights))
    equal = np.append(np.full(units, 1.0 / units), 0.0)[None]
    return [
        Resampled(
            figure.value(),
            float(figure.weighted(equal)[1][0]),
            *(np.concatenate(part) for part in zip(*parts, strict=True)),
        )
        for figure, parts in zip(figures, drawn, strict=True)
    ]


def unseen_share(units: float, confidence: float, resamples: int) -> float:
    """Largest share of units that may be like the unseen one when none of ``units`` was, 1 - (1 - confidence)^(1/n),
    with the margin for a finite number of draws."""
    return float(1.0 - drawn_level(confidence, resamples) ** (1.0 / units))


def units_for(share: float, confidence: float, resamples: int) -> int:
    """Units of which none may be like the unseen one, so that at most ``share`` of all can be."""
    if share >= 1.0:
        return 1
    return int(np.ceil(np.log(drawn_level(confidence, resamples)) / np.log1p(-share)))


def drawn_level(confidence: float, resamples: int) -> float:
    """Share of the draws beyond the bound: 1 - confidence, less a margin for their finite number."""
    return (max(_rank(confidence, resamples), 1) - 0.5) / resamples


def _upper(draws: FloatArray, confidence: float) -> float:
    rank = _rank(confidence, len(draws))
    return float(np.partition(draws, len(draws) - rank)[len(draws) - rank]) if rank else float("inf")


def _rank(confidence: float, resamples: int) -> int:
    """From the top: so many draws, and no fewer, lie beyond the true quantile with `_SURE` certainty."""
    return int(stats.binom.ppf(1.0 - _SURE, resamples, 1.0 - confidence))


def _weights(units: int, resamples: int, rows: int) -> Iterator[FloatArray]:
    """Dirichlet(1, ..., 1) weights ``[up to rows, units + 1]``, in all so many rows as ``resamples``.

    The unseen unit's, which is Beta(1, units), takes evenly spaced quantiles in random order, so that what nobody has
    seen is bounded without an error of the draws.
    """
    rng = np.random.default_rng(_SEED)
    unseen = 1.0 - ((rng.permutation(resamples) + 0.5) / resamples) ** (1.0 / units)
    for start in range(0, resamples, rows):
        part = unseen[start : start + rows]
        seen = rng.standard_exponential((len(part), units))
        seen *= ((1.0 - part) / seen.sum(axis=1))[:, None]
        yield np.concatenate([seen, part[:, None]], axis=1)
