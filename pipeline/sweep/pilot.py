"""A pilot on a share of the data: which settings are worth repeating on everything, and what that saved. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from pipeline.selection.choose import Choice, front, objective
from pipeline.selection.judged import Setting
from pipeline.sweep.judged import Judged
from pipeline.sweep_config import Tolerance

COMPARED = ("mean", "tail", "drift")
"""Figures in which the order of the settings on a share of the data is held against that on everything."""


def promising(settings: Sequence[Setting], choice: Choice, tolerance: Tolerance, share: float) -> list[int]:
    """Which settings to repeat on everything: ``share`` of them, at least two.

    First those that the pilot would choose and hold second; then by layers of the front (less of one thing may be
    worth more of another on everything), and within a layer by what they are worth under the tolerance. The limits
    themselves drop none: on a share of the data every policy drifts less than it will.
    """
    count = min(len(settings), max(2, math.ceil(share * len(settings))))
    layers = _layers(settings)
    first = [index for index in (choice.best, choice.runner_up) if index is not None]
    rest = [index for index in range(len(settings)) if index not in first]
    rest.sort(key=lambda index: (layers[index], -objective(settings[index], tolerance)))
    return sorted([*first, *rest][:count])


def _layers(settings: Sequence[Setting]) -> list[int]:
    """0 for the Pareto front, 1 for the front of what is left without it, and so on."""
    layers = [0] * len(settings)
    left = list(range(len(settings)))
    layer = 0
    while left:
        on_it = {left[position] for position in front([settings[index] for index in left])}
        for index in on_it:
            layers[index] = layer
        left = [index for index in left if index not in on_it]
        layer += 1
    return layers


def agreement(pilot: Sequence[Setting], whole: Sequence[Setting]) -> dict[str, float | None]:
    """Kendall's tau-b between the two orders of the same settings, by figure; None for fewer than three of them, or
    where one order is all ties."""
    found: dict[str, float | None] = {}
    for name in COMPARED:
        values = [[setting.figure(name).value for setting in side] for side in (pilot, whole)]
        tau = float(stats.kendalltau(*values).statistic) if len(pilot) > 2 else math.nan
        found[name] = None if math.isnan(tau) else tau
    return found


def pilot_facts(judged: Judged, kept: Sequence[int], share: float, pairs: int) -> dict[str, Any]:
    """What the report says of a pilot before anything is repeated.

    Args:
        pairs: training pairs of the share.
    """
    dropped = [index for index in range(len(judged.settings)) if index not in kept]
    return {
        "fraction": share,
        "pairs": pairs,
        "settings": len(judged.settings),
        "kept": [judged.name(index) for index in kept],
        "dropped": [judged.name(index) for index in dropped],
        "chosen": judged.named(judged.choice.best),
        "seconds_pilot": math.fsum(_seconds(judged, index) for index in range(len(judged.settings))),
    }


def held_against(pilot: Judged, whole: Judged) -> dict[str, Any]:
    """What the repetition on everything says of the pilot: its choice, its order, and what was saved.

    The saving is an estimate: the dropped settings at the mean time of the repeated ones, less the pilot's own.
    """
    by_name = {whole.name(index): index for index in range(len(whole.settings))}
    both = [(index, by_name[pilot.name(index)]) for index in range(len(pilot.settings)) if pilot.name(index) in by_name]
    chosen = pilot.named(pilot.choice.best), whole.named(whole.choice.best)
    spent = [_seconds(whole, index) for index in range(len(whole.settings))]
    dropped = len(pilot.settings) - len(both)
    own = math.fsum(_seconds(pilot, index) for index in range(len(pilot.settings)))
    return {
        "chosen_on_everything": chosen[1],
        "same_choice": None if None in chosen else chosen[0] == chosen[1],
        "rank_agreement": agreement([pilot.settings[i] for i, _ in both], [whole.settings[k] for _, k in both]),
        "seconds_saved": dropped * math.fsum(spent) / len(spent) - own,
    }


def _seconds(judged: Judged, index: int) -> float:
    """Of all runs of a setting."""
    return math.fsum(one.seconds for one in judged.trials[index])
