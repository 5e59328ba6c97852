"""Estimates with 95% intervals for sampled scores and for held-out pairs.

The unit of resampling is always the *prompt* (all seeds together) or the *group* of pairs, never the single
sample or pair: samples of one prompt resemble one another, and counting them as independent makes intervals
too narrow. Both models are resampled together, so that a difference is a paired one.

Intervals are percentile bootstrap intervals. BCa's acceleration comes from a jackknife, which is inconsistent
for quantiles and undefined when every resample agrees (a share of zero, a constant score): the percentile
method stays inside the figure's range and is a zero-width interval there, not NaN. It says nothing about
events that were never seen: see `unseen_share_bound`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

CONFIDENCE = 0.95
QUANTILE = 0.05
"""The level of `lower_quantile` in `score_figures`."""

_SEED = 20505
_BATCH_VALUES = 4_000_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; ``low`` and ``high`` are None where no interval is defined."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def scaled(self, factor: float) -> Estimate:
        """This figure in another unit; a negative factor also swaps the interval's ends."""
        value = self.value * factor + 0.0  # a plain zero, not the negative one
        if self.low is None or self.high is None:
            return Estimate(value)
        low, high = sorted((self.low * factor + 0.0, self.high * factor + 0.0))
        return Estimate(value, low, high)

    @property
    def sign(self) -> int:
        """1 or -1 when the whole interval lies above or below zero, otherwise 0 (also without an interval)."""
        if self.low is not None and self.low > _ROUNDING:
            return 1
        return -1 if self.high is not None and self.high < -_ROUNDING else 0


def lower_quantile(ordered: FloatArray, level: float) -> FloatArray:
    """Smallest value whose cumulative share reaches ``level``.

    ``ordered`` [..., n] ascends along its last axis; the result is [...].
    """
    count = ordered.shape[-1]
    position = int(np.ceil(count * level - _ROUNDING)) - 1
    return ordered[..., min(max(position, 0), count - 1)]


def lower_tail_mean(ordered: FloatArray, fraction: float) -> FloatArray:
    """CVaR of a score: the mean of its lowest ``fraction``, with the atom at the boundary split.

    ``ordered`` [..., n] ascends along its last axis; the result is [...]. Of n values the lowest
    floor(n * fraction) count wholly and the next one counts with what is left of n * fraction.
    """
    count = ordered.shape[-1]
    mass = count * fraction
    whole = min(int(np.floor(mass + _ROUNDING)), count)
    total = ordered[..., :whole].sum(axis=-1)
    rest = mass - whole
    if rest > _ROUNDING and whole < count:
        total = total + rest * ordered[..., whole]
    return np.asarray(total / mass)


def score_figures(scores: FloatArray, tail_fraction: float, incident_below: float | None) -> dict[str, FloatArray]:
    """Figures of scores [..., n] along the last axis, each [...].

    ``mean``; ``tail_quantile`` (the 5% quantile); ``tail_mean`` (mean of the worst ``tail_fraction``); and,
    with a threshold, ``incident_share`` (share strictly below it).
    """
    ordered = np.sort(scores, axis=-1)
    figures = {
        "mean": ordered.mean(axis=-1),
        "tail_quantile": lower_quantile(ordered, QUANTILE),
        "tail_mean": lower_tail_mean(ordered, tail_fraction),
    }
    if incident_below is not None:
        figures["incident_share"] = (ordered < incident_below).mean(axis=-1)
    return figures


def compare_scores(
    reference: FloatArray,
    policy: FloatArray,
    *,
    tail_fraction: float,
    incident_below: float | None,
    resamples: int,
) -> dict[str, dict[str, Estimate]]:
    """The figures of two score matrices [prompts, seeds] over the same prompts, and of their difference.

    Returns ``{"reference" | "policy" | "difference": {figure: Estimate}}``, the figures being those of
    `score_figures` and ``worst`` (the minimum, without an interval: a bootstrap cannot give one). The
    difference is policy - reference. Needs equal shapes; with one prompt there are no intervals.
    """
    assert reference.shape == policy.shape
    assert reference.ndim == 2

    def figures(scores: FloatArray) -> FloatArray:
        flat = scores.reshape(*scores.shape[:-2], -1)
        return np.stack(list(score_figures(flat, tail_fraction, incident_below).values()))

    def statistic(prompts: IndexArray) -> FloatArray:
        of_reference, of_policy = figures(reference[prompts]), figures(policy[prompts])
        return np.stack([of_reference, of_policy, of_policy - of_reference])

    names = list(score_figures(reference.reshape(1, -1), tail_fraction, incident_below))
    estimates = bootstrap(reference.shape[0], statistic, resamples=resamples, values_per_unit=2 * reference.shape[1])
    result = {
        side: dict(zip(names, row, strict=True))
        for side, row in zip(("reference", "policy", "difference"), estimates, strict=True)
    }
    lowest = float(reference.min()), float(policy.min())
    for side, value in zip(result, (*lowest, lowest[1] - lowest[0]), strict=True):
        result[side]["worst"] = Estimate(value)
    return result


def ratio_estimates(
    numerators: dict[str, FloatArray], denominators: dict[str, FloatArray], *, resamples: int
) -> dict[str, Estimate]:
    """Ratios sum(numerator) / sum(denominator) over groups, e.g. a mean over pairs or bits per byte.

    Both map the same figure names to arrays [groups]. A group counts with its size, as in the plain ratio.
    A figure whose denominator sums to zero is undefined and left out.
    """
    names = [name for name in numerators if denominators[name].sum() > 0]
    if not names:
        return {}
    top = np.stack([numerators[name] for name in names])
    bottom = np.stack([denominators[name] for name in names])

    def statistic(groups: IndexArray) -> FloatArray:
        below = bottom[:, groups].sum(axis=-1)
        # A resample of nothing but empty groups has no ratio; the point estimate stands in for it.
        whole = (top.sum(axis=-1) / bottom.sum(axis=-1)).reshape(-1, *[1] * (below.ndim - 1))
        above = np.where(below > 0, top[:, groups].sum(axis=-1), whole)
        return above / np.where(below > 0, below, 1.0)

    estimates = bootstrap(top.shape[1], statistic, resamples=resamples, values_per_unit=2 * len(names))
    return dict(zip(names, estimates, strict=True))


def bootstrap(
    units: int, statistic: Callable[[IndexArray], FloatArray], *, resamples: int, values_per_unit: int = 1
) -> list[Any]:
    """Percentile bootstrap of an array-valued statistic over ``units`` prompts or groups.

    ``statistic`` maps unit indices [..., units] to values [*figures, ...]; the result is a nested list of
    `Estimate` of shape ``figures``. The resampling is seeded, so equal input gives equal intervals.
    ``values_per_unit`` bounds the memory: so many numbers are gathered for each index.
    """
    value = statistic(np.arange(units))
    if units < 2:
        return _estimates(value, None, None)
    interval = stats.bootstrap(
        (np.arange(units),),
        lambda indices, axis: statistic(np.moveaxis(indices, axis, -1)),
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // (units * values_per_unit)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return _estimates(value, np.asarray(interval.low), np.asarray(interval.high))


def _estimates(value: FloatArray, low: FloatArray | None, high: FloatArray | None) -> list[Any]:
    if value.ndim > 1:
        empty = [None] * len(value)
        return [
            _estimates(*parts)
            for parts in zip(value, empty if low is None else low, empty if high is None else high, strict=True)
        ]
    if low is None or high is None:
        return [Estimate(float(one)) for one in value]
    return [Estimate(float(v), float(lo), float(hi)) for v, lo, hi in zip(value, low, high, strict=True)]


def loss_avoided_per_1000(incident_difference: Estimate, cost_per_incident: float) -> Estimate:
    """Expected loss avoided per 1,000 outputs: cost * 1000 * (reference's incident share - policy's).

    ``incident_difference`` is policy - reference; the result has the unit of the cost.
    """
    return incident_difference.scaled(-1000.0 * cost_per_incident)


def unseen_share_bound(units: int) -> float:
    """Largest share of prompts that could show an event seen in none of ``units`` (95% confidence).

    The exact binomial bound 1 - 0.05^(1/n), about 3/n: what an interval of zero width at zero hides.
    """
    return float(1.0 - (1.0 - CONFIDENCE) ** (1.0 / units))
