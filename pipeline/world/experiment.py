"""What a level buys: every method at every level, on endless and on little data, compared at equal drift and gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.risk.measures import Measure
from pipeline.world.evidence import Evidence
from pipeline.world.fronts import Compared, compared, crossing
from pipeline.world.grammar import World
from pipeline.world.learning import Objective, Problem, Schedule, train
from pipeline.world.truth import Truth, truth_of

LEVELS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
"""Of CVaR; 1 is neutral: tdpo1 and tdpo2."""
BETAS = tuple(25.6 / 2**step for step in range(10))
"""From near the reference (25.6) outwards (0.05): the points of a front."""
DRIFTS = (0.05, 0.1, 0.3)
"""KL(pi || pi_ref) at which methods are compared, nats."""
GAINS = (0.3, 0.4)
"""Gain of the mean reward over the reference at which they are compared."""


@dataclass(frozen=True)
class Family:
    """A method over all levels."""

    method: str
    neutral: str
    """The same method at level 1."""
    alpha: float | None
    """None where the method has none."""

    @property
    def name(self) -> str:
        """Of its line in the figure."""
        return self.method if self.alpha is None else f"{self.method}, alpha {self.alpha:g}"

    def objective(self, level: float) -> Objective:
        """At a level of CVaR."""
        alpha = 1.0 if self.alpha is None else self.alpha
        if level == 1.0:
            return Objective(self.neutral, alpha=alpha)
        return Objective(self.method, Measure("cvar", level), alpha)


FAMILIES = (
    Family("ra_dpo1", "tdpo1", None),
    Family("ra_dpo2", "tdpo2", 0.5),
    Family("ra_dpo2", "tdpo2", 0.2),
)


@dataclass(frozen=True)
class Row:
    """A method at one level, beside dpo in the same worlds."""

    family: Family | None
    """None for dpo."""
    level: float
    label: str
    at: dict[str, dict[str, Compared] | None]
    """By place ("drift 0.1", "gain 0.3"), the figures of `Truth` there; None where a world's front never comes."""


Fronts = dict[str, np.ndarray]
"""The figures of `Truth`, each ``[W, B]``, and "gain", the mean above the reference's."""


def rows_of(worlds: Sequence[World], evidence: Sequence[Evidence], schedule: Schedule) -> Iterator[Row]:
    """dpo, then every family at every level, each after its training."""
    problem = Problem(worlds, evidence)
    dpo = fronts_of(worlds, problem, Objective("dpo"), schedule)
    yield Row(None, 1.0, "dpo", beside(dpo, dpo))
    for family in FAMILIES:
        for level in LEVELS:
            objective = family.objective(level)
            fronts = fronts_of(worlds, problem, objective, schedule)
            yield Row(family, level, objective.label, beside(fronts, dpo))


def fronts_of(worlds: Sequence[World], problem: Problem, objective: Objective, schedule: Schedule) -> Fronts:
    """The truth at every beta."""
    log_pi = train(problem, objective, BETAS, schedule)
    truths = [truth_of(world, policies) for world, policies in zip(worlds, log_pi, strict=True)]
    fronts = {name: np.stack([getattr(truth, name).numpy() for truth in truths]) for name in Truth._fields}
    reference = [truth_of(world, world.log_ref).mean.item() for world in worlds]
    return fronts | {"gain": fronts["mean"] - np.array(reference)[:, None]}


def beside(fronts: Fronts, dpo: Fronts) -> dict[str, dict[str, Compared] | None]:
    """A method's fronts beside dpo's, at every place."""
    # Near the reference rewards change like the square root of the drift: on that scale a front is nearly straight.
    scales: dict[str, Callable[[np.ndarray], np.ndarray]] = {"drift": _root, "gain": np.asarray}
    at: dict[str, dict[str, Compared] | None] = {}
    for axis, targets in (("drift", DRIFTS), ("gain", GAINS)):
        scale = scales[axis]
        for target in targets:
            goal = float(scale(np.array(target)))
            figures = {
                name: compared(*(crossing(scale(one[axis]), goal, one[name]) for one in (fronts, dpo)))
                for name in Truth._fields
            }
            reached = {name: figure for name, figure in figures.items() if figure is not None}
            at[f"{axis} {target:g}"] = reached or None
    return at


def _root(drift: np.ndarray) -> np.ndarray:
    """Square root of a drift, which rounding may have made a little negative."""
    root: np.ndarray = np.sqrt(drift.clip(min=0.0))
    return root
