"""Could the limits hold at all with so few prompts? The chance of promotion if there were nothing to find.

Estimated from the scatter of the evaluation itself: an estimate scatters about the truth as its resamples do about it,
and its bound lies as far from it as it does here. For another number of units the scatter shrinks with its square
root, the part of the unseen unit with the number itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.statistics import FloatArray
from pipeline.release.bounds import Resampled

_MOST_UNITS = 10_000_000
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Prospect:
    """One limit in evaluations of a policy that has nothing to hide."""

    units: int
    room: float
    """From what the figure is for such a policy to the limit."""
    scatter: FloatArray
    """Of the estimate about the truth, ``[resamples]``."""
    seen: float
    """From the estimate to its bound, as far as the units account for it that were seen."""
    unseen: float
    """The rest of that distance."""

    def holds(self, units: int) -> FloatArray:
        """Whether the limit holds with so many units, ``[resamples]``."""
        times = units / self.units
        reach = (self.scatter + self.seen) / math.sqrt(times) + self.unseen / times
        return np.asarray(reach <= self.room + _ROUNDING)


def prospect(resampled: Resampled, units: int, limit: float, alike_value: float | None, confidence: float) -> Prospect:
    """Of a figure's resamples; ``alike_value`` is what it truly is for a policy that has nothing to hide, None for as
    observed."""
    seen = resampled.scatter(confidence)
    return Prospect(
        units=units,
        room=limit - (resampled.centre if alike_value is None else alike_value),
        scatter=resampled.seen - resampled.centre,
        seen=seen,
        unseen=resampled.upper(confidence) - resampled.centre - seen,
    )


def chance(prospects: Sequence[Prospect], units: int) -> float:
    """Of all limits holding together with so many units; the prospects share their units and draws."""
    if not prospects:
        return 1.0
    return float(np.logical_and.reduce([one.holds(units) for one in prospects]).mean())


def units_needed(prospects: Sequence[Prospect], asked: float) -> int | None:
    """Fewest units with which all limits hold together with the chance ``asked``; None when no number is enough."""
    if any(one.room <= 0 for one in prospects):
        return None
    high = 1
    while chance(prospects, high) < asked:
        high *= 2
        if high > _MOST_UNITS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(prospects, middle) >= asked else (middle, high)
    return high
