"""By how much figures exceed what a user tolerates; for the words on the test split and the nearest misses. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.report.sweep.words import Row

LIMITS = (("tail_drop", "tail_gain", -1), ("max_drift", "drift", 1), ("max_incidents", "incidents", 1))
"""Name of the limit, the figure it holds for, and the sign that makes more of it worse."""
_NAMES = {
    "tail_drop": "the worst outputs score {} below the reference's, at most {} is tolerated",
    "max_drift": "the drift is {} nats, at most {} is tolerated",
    "max_incidents": "the share of incidents is {}, at most {} is tolerated",
}


def held(figures: Row, limit: str, tolerance: Row) -> float | None:
    """What is held against a limit: the figure or, with ``whole_interval``, the worse end of its interval.

    None where nothing is to be held; infinity where an interval is asked for and there is none.
    """
    _, name, sign = next(one for one in LIMITS if one[0] == limit)
    figure = figures.get(name)
    if tolerance.get(limit) is None or figure is None or figure["value"] is None:
        return None
    if not tolerance.get("whole_interval"):
        return float(sign * figure["value"])
    end = figure["high" if sign > 0 else "low"]
    return math.inf if end is None else float(sign * end)


def excesses(figures: Row, tolerance: Row) -> dict[str, float]:
    """Of each limit that is broken, by how much."""
    found = {}
    for limit, _, _ in LIMITS:
        value = held(figures, limit, tolerance)
        if value is not None and value > tolerance[limit]:
            found[limit] = value - tolerance[limit]
    return found


def broken_in_words(figures: Row, tolerance: Row) -> list[str]:
    """The limits that are broken, in words; decay is no figure, and is left to the verdict of a report."""
    whole = "up to " if tolerance.get("whole_interval") else ""
    found = []
    for limit, excess in excesses(figures, tolerance).items():
        form = "{:.1%}" if limit == "max_incidents" else "{:.4g}"
        amount = "unknown" if math.isinf(excess) else whole + form.format(tolerance[limit] + excess)
        most = form.format(tolerance[limit]) if limit == "max_incidents" else f"{tolerance[limit]:g}"
        found.append(_NAMES[limit].format(amount, most))
    return found


def nearest(settings: Sequence[Row], tolerance: Row, count: int = 3) -> list[int]:
    """Settings that break the fewest limits and, among those, exceed them by the least.

    An excess counts as its share of the figure's range over all settings, so that nats and scores can be added.
    """
    ranges = {}
    for limit, name, _ in LIMITS:
        values = [one["figures"][name]["value"] for one in settings if one["figures"].get(name)]
        finite = [value for value in values if value is not None]
        ranges[limit] = (max(finite) - min(finite) if finite else 0.0) or 1.0

    def distance(index: int) -> tuple[int, float, int]:
        broken = excesses(settings[index]["figures"], tolerance)
        return (
            len(settings[index]["limits_broken"]),
            sum(excess / ranges[limit] for limit, excess in broken.items()),
            index,
        )

    return sorted(range(len(settings)), key=distance)[:count]
