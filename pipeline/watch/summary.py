"""What the page of a watch shows, as JSON: numbers and names, no words of any language. Pure but for the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np

from pipeline.watch.alerts import Alert
from pipeline.watch.days import Day
from pipeline.watch.rules import RISK, Rule
from pipeline.watch.state import Epoch, State
from pipeline.watch.subject import Subject

_ALERTS, _RISKY = 20, 5
_SHARES = (0.1, 0.5, 0.9)


def summarise(
    state: State,
    subject: Subject,
    rules: Sequence[Rule],
    baseline: Mapping[str, Sequence[float]],
    target: str,
    alerts: Sequence[Alert],
    now: datetime,
) -> dict[str, Any]:
    """The content of the page.

    Args:
        rules: of the version.
        baseline: its values by measure; empty while it is being taken.
        alerts: of what is watched, oldest first.
    """
    epoch = state.epoch
    assert epoch is not None
    newest = [each for day in state.days.values() for each in day.riskiest]
    return {
        "now": now.isoformat(timespec="seconds"),
        "line": subject.line,
        "target": target,
        "version": subject.version,
        "id": subject.id,
        "risk": subject.risk,
        "primary": subject.primary,
        "measures": list(subject.measures),
        "epoch": {
            **{name: getattr(epoch, name) for name in ("number", "begun", "asked", "false_alarms", "window")},
            "size": epoch.baseline_outputs,
            "complete": epoch.thresholds is not None,
            "gathered": len(next(iter(state.gathered.values()), [])),
            "outputs": state.progress.outputs,
        },
        "rules": [_rule(rule, state, epoch) for rule in rules] if epoch.thresholds is not None else [],
        "alerts": [one.as_dict() for one in reversed(alerts[-_ALERTS:])],
        "more_alerts": max(0, len(alerts) - _ALERTS),
        "days": [_day(name, day) for name, day in sorted(state.days.items())],
        "bands": {name: _quantiles(values) for name, values in baseline.items()},
        "riskiest": [asdict(one) for one in sorted(newest, key=lambda one: -one.measures[RISK])[:_RISKY]],
        "skipped": [
            {"reason": reason, **asdict(one)}
            for reason, one in sorted(state.skipped.items(), key=lambda o: -o[1].count)
        ],
        **{name: getattr(state, name) for name in ("outputs", "cut", "anew", "last_output", "lost_bytes", "restarted")},
    }


def _rule(rule: Rule, state: State, epoch: Epoch) -> dict[str, Any]:
    standing = state.progress.rules.get(rule.name)
    assert epoch.thresholds is not None
    return {
        "name": rule.name,
        "measure": rule.measure,
        "kind": rule.kind,
        "up": rule.up,
        "threshold": epoch.thresholds[rule.name],
        "value": 0.0 if standing is None else standing.value,
        "alarm": None if standing is None else standing.alarm,
    }


def _day(name: str, day: Day) -> dict[str, Any]:
    measures = {key for _, values in day.sample for key in values}
    return {
        "day": name,
        "outputs": day.outputs,
        "skipped": sum(day.skipped.values()),
        "quantiles": {
            key: _quantiles([values[key] for _, values in day.sample if key in values]) for key in sorted(measures)
        },
    }


def _quantiles(values: Sequence[float]) -> list[float]:
    return [float(one) for one in np.quantile(values, _SHARES)]
