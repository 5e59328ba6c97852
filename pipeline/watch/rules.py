"""What is watched, and how a drift adds up: the rules and their statistics. Pure.

Every rule is a CUSUM over ranks r in (0, 1) against the baseline (`pipeline.watch.ranks`; 1 - r where low values are
bad): ``S = max(0, S + step(r))``, an alarm when S exceeds the rule's threshold.

* location: ``step(r) = Phi^-1(r) - 1/4``, the normal score less half of a shift of half a standard deviation, which is
  the shift that it finds fastest.
* tail: the log-likelihood ratio of "8% of the outputs are beyond the baseline's worst 1%" against "1% are": finds
  catastrophes that leave the middle where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri

from pipeline.watch.ranks import FloatArray

Kind = Literal["location", "tail"]
Direction = Literal["up", "down", "both"]

ALLOWANCE = 0.25
TAIL, TAIL_DRIFTED = 0.01, 0.08
"""Share of outputs beyond the baseline's worst 1%, without drift and with the drift that the rule is made for."""
RISK, KL, TOKENS = "risk", "kl", "tokens"
"""The sequential risk by the version's own measure, the sequential KL (both nats an output), and tokens an output."""


@dataclass(frozen=True)
class Rule:
    """A test in one direction of one measure."""

    measure: str
    kind: Kind
    up: bool
    """Whether high values are what it looks for."""

    @property
    def name(self) -> str:
        """Such as ``risk-up``, ``vader-down`` or ``risk-tail``."""
        return f"{self.measure}-tail" if self.kind == "tail" else f"{self.measure}-{'up' if self.up else 'down'}"

    def step(self, rank: float) -> float:
        """What an output of this rank adds."""
        return float(steps(self.kind, np.array(rank if self.up else 1.0 - rank)))


def steps(kind: Kind, ranks: FloatArray) -> FloatArray:
    """What outputs of these ranks add, where high ranks are bad."""
    if kind == "location":
        return np.asarray(ndtri(ranks) - ALLOWANCE)
    beyond, within = math.log(TAIL_DRIFTED / TAIL), math.log((1 - TAIL_DRIFTED) / (1 - TAIL))
    return np.where(ranks > 1 - TAIL, beyond, within)


def rules_for(measures: Mapping[str, Direction], primary: str) -> tuple[Rule, ...]:
    """The rules of a version.

    Args:
        measures: every measure with the direction that is bad.
        primary: the score that the version was judged by.
    """
    location = [
        Rule(name, "location", way == "up")
        for name, bad in measures.items()
        for way in (("up", "down") if bad == "both" else (bad,))
    ]
    tails = [Rule(name, "tail", measures[name] == "up") for name in (RISK, KL, primary) if name in measures]
    return (*location, *tails)
