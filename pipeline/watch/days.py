"""What the page shows of the last days, kept small: counts, a sample of the measures, the riskiest outputs. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DAYS = 14
SAMPLE = 200
"""Outputs of a day whose measures are kept: quantiles of them are right to some 3% of rank."""
RISKIEST = 3
_SHOWN_TOKENS = 300
_SHOWN_CHARACTERS = 600


@dataclass
class Risky:
    """One of a day's riskiest outputs."""

    where: str
    time: str | None
    version: int
    prompt: str
    """Its end."""
    tokens: list[str]
    """Around the riskiest token, when there are many."""
    risks: list[float]
    left_out: tuple[int, int]
    """Tokens before and after those."""
    measures: dict[str, float]


@dataclass
class Day:
    """One day (UTC) of the log."""

    outputs: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    sample: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """A heap: random priority, and measures."""
    riskiest: list[Risky] = field(default_factory=list)

    def add(self, measures: Mapping[str, float], priority: float) -> None:
        """Count an output.

        Args:
            priority: uniform in (0, 1): the largest ones stay in the sample.
        """
        self.outputs += 1
        if len(self.sample) < SAMPLE or priority > self.sample[0][0]:
            entry = priority, {name: float(f"{value:.6g}") for name, value in measures.items()}
            push = heapq.heappush if len(self.sample) < SAMPLE else heapq.heapreplace
            push(self.sample, entry)

    def is_risky(self, risk: float) -> bool:
        """Whether an output is among the riskiest so far."""
        return len(self.riskiest) < RISKIEST or risk > self.riskiest[-1].measures["risk"]

    def show(self, one: Risky) -> None:
        """Keep one of the riskiest outputs."""
        self.riskiest = sorted([*self.riskiest, one], key=lambda each: -each.measures["risk"])[:RISKIEST]

    def skip(self, reason: str) -> None:
        """Count a row that was not scored."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Day:
        """What `dataclasses.asdict` gave, from JSON."""
        risky = [Risky(**{**one, "left_out": tuple(one["left_out"])}) for one in value["riskiest"]]
        sample = [(priority, measures) for priority, measures in value["sample"]]
        return cls(value["outputs"], dict(value["skipped"]), sample, risky)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def risky(
    where: str,
    time: str | None,
    version: int,
    prompt: str,
    tokens: list[str],
    risks: list[float],
    measures: Mapping[str, float],
) -> Risky:
    """An output to show, shortened around its riskiest token."""
    peak = max(range(len(risks)), key=risks.__getitem__)
    start = max(0, min(peak - _SHOWN_TOKENS // 2, len(risks) - _SHOWN_TOKENS))
    stop = start + _SHOWN_TOKENS
    return Risky(
        where,
        time,
        version,
        prompt[-_SHOWN_CHARACTERS:],
        tokens[start:stop],
        [float(f"{one:.4g}") for one in risks[start:stop]],
        (start, max(0, len(risks) - stop)),
        dict(measures),
    )


def forget(days: dict[str, Day]) -> None:
    """Keep the newest days only."""
    for name in sorted(days)[:-DAYS]:
        del days[name]
