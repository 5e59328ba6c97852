"""The risk measures there are, and what their options mean: the one table that configuration, the mathematics,
reports and documentation read. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from pipeline.errors import RiskError


@dataclass(frozen=True)
class LevelRange:
    """The levels a measure takes: a half-open interval, and how to read them."""

    low: float
    high: float
    includes_low: bool
    meaning: str

    def __contains__(self, level: float) -> bool:
        above = level >= self.low if self.includes_low else level > self.low
        return math.isfinite(level) and above and level <= self.high

    def __str__(self) -> str:
        left = "[" if self.includes_low else "("
        return f"{left}{self.low:g}, {self.high:g}]" if math.isfinite(self.high) else f"{left}{self.low:g}, inf)"


TAIL_MASS = LevelRange(0.0, 1.0, False, "the tail mass kept: 1 is risk-neutral, smaller is more averse")


@dataclass(frozen=True)
class MeasureInfo:
    """One measure: its level (None: it has none), whether it mixes with the mean by a weight, what it is."""

    level: LevelRange | None
    has_weight: bool
    text: str
    is_risk_measure: bool = True
    """Law-invariant, convex and cash-additive, so that a grouped (top-k) law bounds it from below and q sums to one.
    The published code's rule is none of these."""


MEASURES: dict[str, MeasureInfo] = {
    "mean": MeasureInfo(None, False, "the mean: sequential forward KL"),
    "cvar": MeasureInfo(TAIL_MASS, False, "mean of the worst `level` mass (conditional value at risk)"),
    "erm": MeasureInfo(
        LevelRange(0.0, math.inf, False, "near 0 is risk-neutral, larger is more averse"),
        False,
        "entropic risk, (1/level) log E exp(level L): a Renyi divergence",
    ),
    "worst_case": MeasureInfo(None, False, "the maximum over the reference's support"),
    "mean_cvar": MeasureInfo(TAIL_MASS, True, "(1 - weight) mean + weight cvar"),
    "evar": MeasureInfo(TAIL_MASS, False, "entropic value at risk: the tightest entropic bound on cvar"),
    "wang": MeasureInfo(
        LevelRange(0.0, math.inf, True, "0 is risk-neutral, larger is more averse"),
        False,
        "Wang transform: tail masses u weighed by Phi(Phi^-1(u) + level)",
    ),
    "proportional_hazard": MeasureInfo(
        LevelRange(0.0, 1.0, False, "1 is risk-neutral, smaller is more averse"),
        False,
        "proportional-hazard transform: tail masses u weighed by u^level",
    ),
    "vocab_quantile": MeasureInfo(
        LevelRange(0.0, 1.0, False, "share of the vocabulary's entries kept"),
        False,
        "not a risk measure: the rule in the paper's published code, over the whole vocabulary",
        is_risk_measure=False,
    ),
    "vocab_quantile_halves": MeasureInfo(
        LevelRange(0.0, 1.0, False, "share of the vocabulary's entries kept"),
        False,
        "the same rule on each half of the vocabulary, the published code's default",
        is_risk_measure=False,
    ),
}


def check_measure(name: str, level: float, weight: float) -> None:
    """Refuse an unknown measure, or options it does not take.

    Raises:
        RiskError: naming the option, the allowed range and what it means.
    """
    module, colon, function = name.partition(":")
    if colon and module and function:
        return  # the user's own distortion, checked when it is loaded
    info = MEASURES.get(name)
    if info is None:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        raise RiskError(
            f"risk.measure: unknown measure {name!r}{f', did you mean {near[0]!r}?' if near else ';'} "
            f"Choose one of {', '.join(MEASURES)}, or name a distortion of your own as 'module:function'"
        )
    if info.level is not None and level not in info.level:
        raise RiskError(f"risk.level: {name} takes a level in {info.level}, got {level:g}; {info.level.meaning}")
    if info.has_weight and not 0 <= weight <= 1:
        raise RiskError(f"risk.weight: {name} takes a weight in [0, 1], got {weight:g}; 0 is the mean, 1 is all cvar")


def is_risk_measure(name: str) -> bool:
    """Whether a measure is a function of the law of L (see `MeasureInfo`); the user's own distortions are."""
    return name not in MEASURES or MEASURES[name].is_risk_measure


def measure_label(name: str, level: float, weight: float) -> str:
    """Short name with the options a measure takes: "kl", "cvar@0.5", "mean_cvar@0.1*0.5", "worst_case"."""
    if name == "mean":
        return "kl"
    if name not in MEASURES:
        return name
    info = MEASURES[name]
    label = name if info.level is None else f"{name}@{_exact(level)}"
    return f"{label}*{_exact(weight)}" if info.has_weight else label


def _exact(number: float) -> str:
    """Short where that is exact: two levels never share a label."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
