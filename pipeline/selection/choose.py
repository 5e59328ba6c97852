"""Which run to take under a written tolerance. Pure: figures in, a choice with its reasons out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.selection.judged import Setting
from pipeline.sweep_config import Tolerance

_DIGITS = 9
"""Figures that agree to so many digits are a tie; it goes to the one that drifted less."""
_OUTPUTS = 1000
_FAR_BELOW = 1e30
"""Below every score and every cost."""

Translate = Callable[[str], str]
"""From an English message to the same in another language; ``str`` leaves it English."""


@dataclass(frozen=True)
class Choice:
    """Positions in the list of settings that was chosen from."""

    best: int | None
    """None when no setting keeps the limits."""
    runner_up: int | None
    front: tuple[int, ...]
    """Those that no other one beats in average score, tail and drift at once."""
    reasons: tuple[tuple[str, ...], ...]
    """For every setting, the limits that it does not keep, in words; empty for those that keep them all."""


def choose(settings: Sequence[Setting], tolerance: Tolerance) -> Choice:
    """The setting with the best average score (or the least expected cost) among those that keep every limit."""
    reasons = tuple(tuple(broken(setting, tolerance)) for setting in settings)
    qualified = [index for index, why in enumerate(reasons) if not why]
    qualified.sort(key=lambda index: _worth(settings[index], tolerance), reverse=True)
    best, runner_up = [*qualified, None, None][:2]
    return Choice(best, runner_up, front(settings), reasons)


def broken(setting: Setting, tolerance: Tolerance, tr: Translate = str) -> list[str]:
    """The limits that a setting does not keep, in words, in the language of ``tr``."""
    whole = tolerance.whole_interval
    tail = tr("worst outputs {value} below the reference's (tail_drop)")
    drift, incidents = tr("drift {value} nats (max_drift)"), tr("share of incidents {value} (max_incidents)")
    found = [
        *_above(setting, "tail_gain", -1, tolerance.tail_drop, whole, tail, tr),
        *_above(setting, "drift", 1, tolerance.max_drift, whole, drift, tr),
        *_above(setting, "incidents", 1, tolerance.max_incidents, whole, incidents, tr),
    ]
    if setting.decayed and not tolerance.allow_decayed:
        found.append(tr("its text shows signs of decay (allow_decayed)"))
    return found


def _above(
    setting: Setting, name: str, sign: int, limit: float | None, whole: bool, words: str, tr: Translate
) -> list[str]:
    """What is to be said when ``sign`` times a figure is above a limit; ``words`` has a place for the {value}."""
    if limit is None:
        return []
    figure = setting.figure(name)
    end = figure.high if sign > 0 else figure.low
    if not whole:
        held = sign * figure.value
    elif end is None:
        no_interval = tr("{figure}: it has no interval (whole_interval)")
        return [no_interval.format(figure=words.format(value=tr("unknown")))]
    else:
        held = sign * end
    if held <= limit:
        return []
    value = tr("up to {value}").format(value=f"{held:.4g}") if whole else f"{held:.4g}"
    return [tr("{figure}, at most {limit}").format(figure=words.format(value=value), limit=f"{limit:g}")]


def objective(setting: Setting, tolerance: Tolerance) -> float:
    """One number for a search, more is better: what is chosen by among those that keep every limit, and far below
    that, by how much the limits are exceeded."""
    over = math.fsum(_excess(setting, tolerance))
    if over > 0 or (setting.decayed and not tolerance.allow_decayed):
        return -_FAR_BELOW * (1 + over)
    return _worth(setting, tolerance)[0]


def nearest(settings: Sequence[Setting], choice: Choice, tolerance: Tolerance) -> tuple[int, ...]:
    """Settings that break a limit: those that break the fewest first, and among these by how little."""
    missed = [index for index, why in enumerate(choice.reasons) if why]
    return tuple(sorted(missed, key=lambda index: (len(choice.reasons[index]), -objective(settings[index], tolerance))))


def _excess(setting: Setting, tolerance: Tolerance) -> Iterator[float]:
    """By how much every limit is exceeded, in parts of it (or as it is, for a limit of nothing)."""
    limits = (("tail_gain", -1, tolerance.tail_drop), ("drift", 1, tolerance.max_drift))
    for name, sign, limit in (*limits, ("incidents", 1, tolerance.max_incidents)):
        if limit is not None:
            figure = setting.figure(name)
            end = (figure.high if sign > 0 else figure.low) if tolerance.whole_interval else figure.value
            yield 1.0 if end is None else max(0.0, sign * end - limit) / (limit or 1.0)


def expected_cost(setting: Setting, cost_per_incident: float) -> float:
    """Of 1,000 outputs."""
    return _OUTPUTS * setting.figure("incidents").value * cost_per_incident


def front(settings: Sequence[Setting]) -> tuple[int, ...]:
    """The Pareto front: larger average score, larger score of the worst outputs, less drift."""
    points = [
        tuple(sign * setting.figure(name).value for name, sign in (("mean", 1), ("tail", 1), ("drift", -1)))
        for setting in settings
    ]

    def beaten(point: tuple[float, ...]) -> bool:
        return any(other != point and all(map(float.__ge__, other, point)) for other in points)

    return tuple(index for index, point in enumerate(points) if not beaten(point))


def _worth(setting: Setting, tolerance: Tolerance) -> tuple[float, ...]:
    """What is compared first, second and third; more is better."""
    mean, drift = setting.figure("mean").value, setting.figure("drift").value
    cost = tolerance.cost_per_incident
    first = mean if cost is None else -expected_cost(setting, cost)
    return round(first, _DIGITS), -round(drift, _DIGITS), mean
