"""Methods compared at equal drift or equal gain: each beta gives a point, the points of a method make its front.

A front runs from the largest beta, near the reference, outwards. What a method makes of a world at a drift is read
off the first stretch of its front that crosses that drift, on a straight line between the two points; methods are
compared world by world, and averaged afterwards.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Compared(NamedTuple):
    """One figure of a method, averaged over worlds."""

    value: float
    difference: float
    """From the baseline's, in the same worlds."""
    standard_error: float
    """Of the difference, over worlds; nan with one world."""


def crossing(position: np.ndarray, target: float, figure: np.ndarray) -> np.ndarray:
    """``figure [W, B]`` where ``position [W, B]`` first meets ``target`` along B: ``[W]``, nan where it never does."""
    before, after = position[:, :-1], position[:, 1:]
    crosses = (np.minimum(before, after) <= target) & (target <= np.maximum(before, after)) & (before != after)
    first = crosses.argmax(1)[:, None]
    start, end = (np.take_along_axis(x, first, 1)[:, 0] for x in (before, after))
    low, high = (np.take_along_axis(x, first, 1)[:, 0] for x in (figure[:, :-1], figure[:, 1:]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(crosses.any(1), low + (target - start) / (end - start) * (high - low), np.nan)


def compared(figure: np.ndarray, baseline: np.ndarray) -> Compared | None:
    """A method's ``figure [W]`` beside the baseline's; None unless both are there in every world, as an average over
    those worlds alone that a front reaches would favour it."""
    difference = figure - baseline
    if np.isnan(difference).any():
        return None
    count = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Compared(float(figure.mean()), float(difference.mean()), error)
