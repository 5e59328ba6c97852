"""Finished trials as the settings that are chosen between."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.selection.choose import Choice, choose
from pipeline.selection.judged import Setting, read_run, settings_of
from pipeline.storage import fetched
from pipeline.sweep.outcomes import Outcome
from pipeline.sweep.space import Trial, setting_name
from pipeline.sweep_config import Tolerance

TRIAL_STAGES = ("align", "sample_policy", "evaluate")
"""Stages that every trial runs for itself."""


@dataclass(frozen=True)
class Ran:
    """A trial and how it ended."""

    trial: Trial
    outcome: Outcome

    @functools.cached_property
    def summary(self) -> Mapping[str, Any] | None:
        """The content of its summary.json, when it finished."""
        if self.outcome.summary is None:
            return None
        found: dict[str, Any] = json.loads(fetched(self.outcome.summary).read_text(encoding="utf-8"))
        return found

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of the stages that it ran for itself; nothing when it did not finish."""
        summary = self.summary
        return {} if summary is None else {name: summary["timing"]["stages"][name] for name in TRIAL_STAGES}

    @property
    def seconds(self) -> float:
        """What its own stages took, also when this or another sweep found some of them done."""
        return math.fsum(self.stages.values())


@dataclass(frozen=True)
class Judged:
    """Settings that have at least one finished trial, and the choice between them."""

    settings: tuple[Setting, ...]
    trials: tuple[tuple[Ran, ...], ...]
    """Of every setting, by seed."""
    choice: Choice

    def name(self, index: int) -> str:
        """A setting in words."""
        trial = self.trials[index][0].trial
        return setting_name(trial.run, trial.options)

    def named(self, index: int | None) -> str | None:
        """The same, for one that may not be there."""
        return None if index is None else self.name(index)


def judge(ran: Sequence[Ran], tolerance: Tolerance) -> Judged:
    """Group finished trials by everything but their seed, and choose."""
    by_path = {fetched(one.outcome.summary): one for one in ran if one.outcome.summary is not None}
    settings = tuple(settings_of([read_run(path) for path in by_path]))
    trials = tuple(tuple(by_path[run.path] for run in setting.runs) for setting in settings)
    return Judged(settings, trials, choose(settings, tolerance))
