"""What to do about bad numbers, decided from numbers alone. Pure: every worker comes to the same decision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import GuardConfig

_CONSISTENT = 1.4826
"""Median absolute deviation times this is the standard deviation of normal numbers."""

_LEAST_DEVIATION = 1e-3
"""Share of the median below which losses count as equal: a flat curve would make a spike of every ripple."""


@dataclass(frozen=True)
class GuardState:
    """What has happened so far; part of a checkpoint."""

    skipped: tuple[int, ...] = ()
    """Steps (from 0) that changed nothing."""
    spikes: tuple[int, ...] = ()
    """Steps whose loss was a spike, of this course of the training."""
    losses: tuple[float, ...] = ()
    """The last ones that were no spikes."""
    lr_scale: float = 1.0
    roll_backs: int = 0

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GuardState:
        return cls(
            tuple(value["skipped"]), tuple(value["spikes"]), tuple(value["losses"]), value["lr_scale"],
            value["roll_backs"],
        )  # fmt: skip


def is_spike(loss: float, before: Sequence[float], config: GuardConfig) -> bool:
    """Whether a loss jumps out of those before it."""
    if len(before) < config.spike_window:
        return False
    median = statistics.median(before)
    deviation = _CONSISTENT * statistics.median(abs(value - median) for value in before)
    return loss > median + config.spike_deviations * max(deviation, _LEAST_DEVIATION * abs(median))


def skip(state: GuardState, step: int) -> GuardState:
    """After a step that changed nothing."""
    return replace(state, skipped=(*state.skipped, step))


def take(state: GuardState, step: int, loss: float, config: GuardConfig) -> GuardState:
    """After a step that was done: a spike is noted, and never becomes what later losses are compared with."""
    if is_spike(loss, state.losses, config):
        return replace(state, spikes=(*state.spikes, step))
    return replace(state, losses=(*state.losses, loss)[-config.spike_window :])


def rolled_back(good: GuardState, now: GuardState, config: GuardConfig) -> GuardState:
    """The state to go on with from the checkpoint whose state was ``good``."""
    return replace(good, lr_scale=now.lr_scale * config.roll_back_lr_factor, roll_backs=now.roll_backs + 1)
