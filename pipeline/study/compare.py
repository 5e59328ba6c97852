"""A setting beside dpo's front at the same drift or the same mean score, and the tests of such differences.

A front is dpo's points at one rate and several betas, sorted by drift within every resample, and straight lines between
neighbours: over log drift when drift is matched, over the mean when that is. A front need not be monotone in the mean:
where several stretches cross the value, the one with the least drift is taken. A resample whose value lies beyond the
front takes the front's end (its drift, or its lowest or highest mean), and the share of such resamples is told; a
setting that lies beyond it itself has no match.

Straight lines miss a bent front, and no interval knows of it: where a figure is convex over the axis, the front is read
too high. Each inner point of the front is therefore held against the line between its neighbours. At an even bend a
stretch as it is used, half as long, misses by up to a quarter of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.statistics import FloatArray
from pipeline.study.intervals import Draws

Axis = Literal["drift", "mean"]
_LEAST_DRIFT = 1e-9
"""Nats; less counts as this, because it is matched by its logarithm."""


@dataclass(frozen=True, eq=False)
class Front:
    """B points in each of D rows, by drift."""

    figures: Mapping[str, FloatArray]
    """``[D, B]`` by the name of the measure."""


@dataclass(frozen=True, eq=False)
class Match:
    """Where a setting meets the front."""

    reason: str | None
    """Why it does not; None when it does."""
    differences: Mapping[str, FloatArray]
    """``[D]`` by measure: the setting's figure less the front's; empty without a match."""
    outside: float
    """Share of resamples beyond the front."""


def front_of(points: Sequence[Mapping[str, FloatArray]]) -> Front:
    """The front of settings whose figures are ``[D]``."""
    stacked = {name: np.stack([point[name] for point in points], axis=1) for name in points[0]}
    order = np.argsort(stacked["drift"], axis=1, kind="stable")
    return Front({name: np.take_along_axis(values, order, axis=1) for name, values in stacked.items()})


def match(setting: Mapping[str, FloatArray], front: Front, axis: Axis, names: Sequence[str], draws: Draws) -> Match:
    """Differences of a setting, whose figures are ``[D]``, from the front in the measures ``names``."""
    target, position = _scale(setting[axis], axis), _scale(front.figures[axis], axis)
    lowest, highest = position.min(axis=1), position.max(axis=1)
    beyond = (target < lowest) | (target > highest)
    outside = float(draws.resampled(beyond).mean())
    if beyond[0]:
        ends = front.figures[axis][0].min(), front.figures[axis][0].max()
        reason = f"{axis} {setting[axis][0]:.3g} is outside the front's, {ends[0]:.3g} to {ends[1]:.3g}"
        return Match(reason, {}, outside)
    target = np.clip(target, lowest, highest)
    return Match(
        None, {name: setting[name] - first_crossing(position, target, front.figures[name]) for name in names}, outside
    )


def first_crossing(position: FloatArray, target: FloatArray, figure: FloatArray) -> FloatArray:
    """``figure [D, B]`` where ``position [D, B]`` first meets ``target [D]`` along B, on straight lines: ``[D]``.

    The target must lie within the positions of its row. A stretch that stands still counts with its beginning.
    """
    if position.shape[1] == 1:
        return figure[:, 0]
    goal = target[:, None]
    before, after = position[:, :-1], position[:, 1:]
    crosses = (np.minimum(before, after) <= goal) & (goal <= np.maximum(before, after))
    first = crosses.argmax(axis=1)[:, None]
    start, end, low, high = (
        np.take_along_axis(values, first, axis=1)[:, 0] for values in (before, after, figure[:, :-1], figure[:, 1:])
    )
    length = end - start
    part = np.where(length == 0, 0.0, (target - start) / np.where(length == 0, 1.0, length))
    return np.asarray(low + part * (high - low))


def p_value(differences: FloatArray) -> float:
    """Two-sided, of resampled differences ``[R]``: twice the smaller share at or beyond zero, never 0, at most 1."""
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2.0 * (beyond + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _scale(values: FloatArray, axis: Axis) -> FloatArray:
    return np.log(np.maximum(values, _LEAST_DRIFT)) if axis == "drift" else values
