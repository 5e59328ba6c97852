"""Prometheus metrics of a watch, made from its state: they go on after a restart where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.watch.state import State

_PREFIX = "ra_dpo_watch_"


@dataclass(frozen=True)
class Surroundings:
    """What a state does not hold."""

    line: str
    target: str
    unread_bytes: int
    registry_failures: int
    undelivered: int


def families(state: State, now: Surroundings) -> Iterator[Metric]:
    """All metrics."""
    who = ["line", "target"]
    values = [now.line, now.target]

    def counter(name: str, text: str, rows: dict[str, float] | float, label: str | None = None) -> Metric:
        found = CounterMetricFamily(_PREFIX + name, text, labels=[*who, *([label] if label else [])])
        for key, value in rows.items() if isinstance(rows, dict) else [(None, rows)]:
            found.add_metric([*values, *([] if key is None else [key])], value)
        return found

    def gauge(name: str, text: str, rows: dict[str, float] | float, label: str | None = None) -> Metric:
        found = GaugeMetricFamily(_PREFIX + name, text, labels=[*who, *([label] if label else [])])
        for key, value in rows.items() if isinstance(rows, dict) else [(None, rows)]:
            found.add_metric([*values, *([] if key is None else [key])], value)
        return found

    epoch, rules = state.epoch, state.progress.rules
    thresholds = (epoch.thresholds if epoch is not None else None) or {}
    yield counter("outputs", "Outputs scored.", float(state.outputs))
    yield counter(
        "skipped",
        "Rows of the log that were not scored.",
        {name: one.count for name, one in state.skipped.items()},
        "reason",
    )
    yield counter("alarms", "Alarms raised.", {name: float(one) for name, one in state.alarms.items()}, "rule")
    yield counter("lost_bytes", "Bytes of log files that went away unread.", float(state.lost_bytes))
    yield counter("registry_failures", "Looks at the registry that failed.", float(now.registry_failures))
    yield gauge(
        "statistic_ratio",
        "A rule's statistic over its threshold; above 1 is an alarm.",
        {name: one.value / thresholds[name] for name, one in rules.items() if name in thresholds},
        "rule",
    )
    yield gauge(
        "alarm",
        "Whether a rule has raised its alarm since the baseline.",
        {name: float(one.alarm is not None) for name, one in rules.items()},
        "rule",
    )
    yield gauge("unread_bytes", "Bytes of the logs that wait to be read.", float(now.unread_bytes))
    yield gauge("undelivered_alerts", "Alerts that the webhook has not taken.", float(now.undelivered))
    if epoch is not None:
        yield gauge("version", "The version that is watched.", float(epoch.version))
        yield gauge("baseline", "Number of the baseline.", float(epoch.number))
        yield gauge("baseline_complete", "Whether the baseline is complete.", float(epoch.thresholds is not None))
    if state.last_output is not None:
        yield gauge(
            "last_output_timestamp_seconds",
            "Time of the newest output.",
            datetime.fromisoformat(state.last_output).timestamp(),
        )


class _Collected(Collector):
    def __init__(self, snapshot: Callable[[], tuple[Metric, ...]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from self._snapshot()


class Metrics:
    """The newest metrics, for the text file and the port. The watch sets them between two batches: whoever scrapes sees
    one moment as a whole."""

    def __init__(self) -> None:
        self._newest: tuple[Metric, ...] = ()
        self.registry = CollectorRegistry()
        self.registry.register(_Collected(lambda: self._newest))

    def set(self, state: State, now: Surroundings) -> None:
        """Take a moment's values."""
        self._newest = tuple(families(state, now))

    def text(self) -> bytes:
        """As a text file that Prometheus' node exporter reads."""
        return generate_latest(self.registry)
