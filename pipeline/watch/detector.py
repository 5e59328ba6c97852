"""All rules of one baseline together: outputs in, alarms out. Pure.

The promise: within each window of N outputs after the baseline, the probability that any rule raises an alarm, though
nothing drifted, is at most the stated one. It is shared out among the rules (Bonferroni), so it holds however the
measures depend on each other; every statistic begins a window at zero, so that all windows are alike. It assumes that
the baseline and the outputs after it are exchangeable: outputs that come in bursts which resemble each other (a user's
session, one prompt many times) break that, and alarms come more often than stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.watch.ranks import Baseline, uniforms
from pipeline.watch.rules import Rule


@dataclass
class Standing:
    """Where one rule stands."""

    value: float = 0.0
    """The statistic."""
    since: int = 0
    """Outputs after the baseline when it was zero last: where a drift would have begun."""
    total: float = 0.0
    """Sum of the measure since then."""
    alarm: int | None = None
    """Outputs after the baseline when it raised its alarm; it raises one only."""


@dataclass(frozen=True)
class Alarm:
    """What a rule found."""

    rule: Rule
    output: int
    """Outputs after the baseline, this one included."""
    statistic: float
    threshold: float
    since: int
    """Outputs after the baseline before the run-up to this alarm."""
    mean_since: float
    """Of the measure, over the run-up."""
    baseline_mean: float


@dataclass
class Progress:
    """What has to be kept of a detector, beside its baseline."""

    outputs: int = 0
    """After the baseline."""
    rules: dict[str, Standing] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Progress:
        """What `as_dict` gave."""
        return cls(value["outputs"], {name: Standing(**one) for name, one in value["rules"].items()})


class Detector:
    """The rules at work.

    Args:
        thresholds: by the name of a rule.
        window: outputs for which the false-alarm probability is stated.
        progress: changed by `add`.
    """

    def __init__(
        self,
        baseline: Baseline,
        thresholds: Mapping[str, float],
        rules: tuple[Rule, ...],
        window: int,
        progress: Progress,
    ) -> None:
        self._seed, self._size = baseline.seed, baseline.size
        self._rules, self._thresholds, self._window = rules, thresholds, window
        self._ordered = baseline.ordered()
        self._means = {name: float(np.mean(values)) for name, values in baseline.values.items()}
        self.progress = progress
        for rule in rules:
            progress.rules.setdefault(rule.name, Standing())

    def add(self, values: Mapping[str, float]) -> list[Alarm]:
        """Take one output's measures; returns the alarms that it raises."""
        ranks = self._ranks(values)
        self.progress.outputs += 1
        now = self.progress.outputs
        alarms = []
        for rule in self._rules:
            standing = self.progress.rules[rule.name]
            standing.value = max(0.0, standing.value + rule.step(ranks[rule.measure]))
            standing.total += values[rule.measure]
            if standing.value == 0.0:
                standing.since, standing.total = now, 0.0
            elif standing.value > self._thresholds[rule.name] and standing.alarm is None:
                standing.alarm = now
                alarms.append(self._alarm(rule, standing, now))
            if now % self._window == 0:
                standing.value, standing.since, standing.total = 0.0, now, 0.0
        return alarms

    def _ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        drawn = uniforms(self._seed, self._size + self.progress.outputs, 2 * len(self._ordered))
        return {
            name: ordered.rank(values[name], drawn[2 * place], drawn[2 * place + 1])
            for place, (name, ordered) in enumerate(self._ordered.items())
        }

    def _alarm(self, rule: Rule, standing: Standing, now: int) -> Alarm:
        return Alarm(
            rule=rule,
            output=now,
            statistic=standing.value,
            threshold=self._thresholds[rule.name],
            since=standing.since,
            mean_since=standing.total / (now - standing.since),
            baseline_mean=self._means[rule.measure],
        )
