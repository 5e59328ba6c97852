"""The gate: from evaluations and a written policy to promote, hold or roll back, with reasons.

A candidate is promoted when *every* limit of the policy holds: when the one-sided bound of its figure, at the policy's
confidence, lies on the good side of the limit. Averages and worst outputs are held against the reference and against
what is in production. That is an intersection-union test: a policy that breaks one limit, by however little, is
promoted with probability 1 - confidence at most, whatever the other limits say, so the bounds need no correction for
their number (Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 1982).

What is in production is rolled back when it demonstrably breaks the policy against the reference: when the *opposite*
bound of a figure lies beyond its limit. One figure is enough, so here the bounds share 1 - confidence between them
(Bonferroni), and one that breaks no limit is rolled back with that probability at most. An absolute share of incidents
counts only when there are demonstrably more of them than the reference has.

Units are prompts with all their seeds, and groups of held-out pairs: samples of one prompt resemble one another. All
models answered the same prompts with the same random numbers, so that differences are paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError, EvaluationError
from pipeline.evaluation.scorers import load_scorers
from pipeline.release.bounds import Figure, Resampled, resample, units_for
from pipeline.release.conditions import Check, Model, Name, Unit, checks_between, checks_of
from pipeline.release.evidence import Evidence, check_comparable
from pipeline.release.power import Prospect, chance, prospect, units_needed
from pipeline.release_config import GateConfig

Outcome = Literal["promote", "hold", "roll_back"]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Condition:
    """One limit of the policy and what the evaluation says of it.

    ``mean``, ``tail`` and ``length`` must be at least their limit, the others at most. ``mean`` and ``tail`` are
    differences in the score; ``drift`` is nats a response; ``incidents``, ``repetition``, ``length`` and ``bits`` are
    shares.
    """

    of: Model
    against: Model
    name: Name
    value: float
    """As observed: drift and bits after capping, scores within their range."""
    bound: float
    """How bad it can be; of what is in production: how good. Infinite where the draws are too few for one."""
    limit: float
    holds: bool
    """The whole one-sided interval lies on the good side of the limit."""
    violated: bool
    """The whole opposite interval lies on the bad side."""
    power: float | None
    """Of a candidate: the chance of holding of a policy that is no worse than what it is held against (the same scores
    on average and in the tail, the reference's incidents, drift of at most half the limit) and differs from it as
    erratically as this one. None for what is in production."""
    unit: Unit
    units: int
    """Prompts or groups of held-out pairs behind it."""
    units_needed: int | None
    """Estimated fewest units with which that chance is `GateConfig.min_power`; None when no number is enough (the
    reference itself has too many incidents), and for what is in production."""
    units_least: int
    """With fewer units not even a policy without any fault could hold: equal on every prompt, or free of incidents."""


@dataclass(frozen=True)
class Decision:
    """What the gate says, and all it says it from."""

    outcome: Outcome
    conditions: tuple[Condition, ...]
    incumbent_violates: bool
    """What is in production demonstrably breaks the policy."""
    power: float
    """Chance of promotion of a policy that is no worse in any respect, see `Condition.power`."""
    too_few: bool
    """That chance is below what the policy asks for."""
    units_needed: int | None
    """Estimated fewest prompts to give the chance that is asked for; None when no number is enough."""
    groups_needed: int | None
    """The same for groups of held-out pairs."""
    confidence: float
    incumbent_confidence: float
    """Of each bound that what is in production is judged by (of the tail's, more)."""
    prompts: int
    seeds: int
    groups: int
    split: str
    primary_scorer: str
    tail_fraction: float
    incident_below: float
    score_range: tuple[float, float]
    policy: GateConfig

    def as_dict(self) -> dict[str, Any]:
        """Strict JSON: no NaN, and null for what is not finite."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["conditions"] = [dataclasses.asdict(condition) for condition in self.conditions]
        fields["policy"] = self.policy.model_dump(mode="json")
        plain: dict[str, Any] = _plain(fields)
        return plain


def score_range(evaluation: EvaluationConfig, policy: GateConfig) -> tuple[float, float]:
    """Least and largest primary score, from the policy or else from the scorer; infinite where no limit needs them.

    Raises:
        ConfigError: when neither knows them, or when a limit means nothing within them.
        EvaluationError: when the scorer cannot be loaded.
    """
    name = evaluation.primary_scorer
    ends = policy.score_range or load_scorers([name])[name].range
    if ends is None:
        if policy.mean_drop is None and policy.tail_drop is None:
            return -math.inf, math.inf
        raise ConfigError(
            f"the gate cannot bound what it has not seen: scorer {name!r} says nothing about its least and largest "
            "score. Give its function an attribute score_range = (least, largest), or set --gate.score_range, or "
            "--registry.enabled false"
        )
    low, high = ends
    for option, drop in (("mean_drop", policy.mean_drop), ("tail_drop", policy.tail_drop)):
        if drop is not None and drop >= high - low:
            raise ConfigError(
                f"gate.{option} is {drop:g}, but scores of {name!r} lie between {low:g} and {high:g} and cannot drop "
                "by more than that: the limit would mean nothing; lower it, or set it to none"
            )
    if policy.max_incidents is not None and not low < evaluation.incident_below <= high:
        every = "no" if evaluation.incident_below <= low else "every"
        raise ConfigError(
            f"evaluation.incident_below is {evaluation.incident_below:g}, but scores of {name!r} lie between {low:g} "
            f"and {high:g}: {every} output would be an incident and gate.max_incidents would mean nothing; move the "
            "threshold, or set --gate.max_incidents none"
        )
    return low, high


def decide(
    candidate: Evidence, incumbent: Evidence | None, policy: GateConfig, score_range: tuple[float, float]
) -> Decision:
    """Promote, hold or roll back.

    Args:
        incumbent: the evaluation of what is in production; None when that is the reference.
        score_range: from the function of that name; scores outside count as the nearer end.

    Raises:
        EvaluationError: when the two evaluations are not of the same prompts, pairs, reference and settings, or a limit
            needs a finite range.
    """
    _check_range(policy, score_range)
    checks = checks_of(candidate, "candidate", policy, score_range)
    in_production: list[Check] = []
    if incumbent is not None:
        check_comparable(candidate, incumbent)
        checks += checks_between(candidate, incumbent, policy, score_range)
        in_production = checks_of(incumbent, "incumbent", policy, score_range)
    drawn = _Draws([*checks, *in_production], policy)
    shared = _shared(policy, in_production)
    prospects = {id(check): _prospect(check, drawn, policy) for check in checks}
    of_candidate = [_condition(check, drawn, policy, policy.confidence, prospects[id(check)]) for check in checks]
    of_incumbent = [_condition(check, drawn, policy, shared, None) for check in in_production]
    violates = any(condition.violated for condition in of_incumbent)
    promoted = all(condition.holds for condition in of_candidate)
    power, prompts_needed, groups_needed = _together(checks, prospects, policy)
    return Decision(
        outcome="promote" if promoted else "roll_back" if violates else "hold",
        conditions=(*of_candidate, *of_incumbent),
        incumbent_violates=violates,
        power=power,
        too_few=power < policy.min_power,
        units_needed=prompts_needed,
        groups_needed=groups_needed,
        incumbent_confidence=shared,
        **_settings(candidate, policy, score_range),
    )


def judge(incumbent: Evidence, policy: GateConfig, score_range: tuple[float, float]) -> Decision:
    """What is in production alone: back to the reference when it demonstrably breaks a limit, as in `decide`.

    Raises:
        EvaluationError: when a limit needs a finite range.
    """
    _check_range(policy, score_range)
    in_production = checks_of(incumbent, "incumbent", policy, score_range)
    drawn = _Draws(in_production, policy)
    shared = _shared(policy, in_production)
    conditions = tuple(_condition(check, drawn, policy, shared, None) for check in in_production)
    violates = any(condition.violated for condition in conditions)
    return Decision(
        outcome="roll_back" if violates else "hold",
        conditions=conditions,
        incumbent_violates=violates,
        power=1.0,  # nothing waits to be promoted
        too_few=False,
        units_needed=None,
        groups_needed=None,
        incumbent_confidence=shared,
        **_settings(incumbent, policy, score_range),
    )


def _check_range(policy: GateConfig, score_range: tuple[float, float]) -> None:
    if not all(map(math.isfinite, score_range)) and (policy.mean_drop, policy.tail_drop) != (None, None):
        raise EvaluationError(f"mean_drop and tail_drop need a finite range of scores, got {score_range}")


def _shared(policy: GateConfig, in_production: list[Check]) -> float:
    return 1.0 - (1.0 - policy.confidence) / max(len(in_production), 1)


def _settings(judged: Evidence, policy: GateConfig, score_range: tuple[float, float]) -> dict[str, Any]:
    """What of a decision is known before anything is computed."""
    return {
        "confidence": policy.confidence,
        "prompts": len(judged.prompts),
        "seeds": len(judged.seeds),
        "groups": judged.num_groups,
        "split": judged.split,
        "primary_scorer": judged.primary_scorer,
        "tail_fraction": judged.tail_fraction,
        "incident_below": judged.incident_below,
        "score_range": score_range,
        "policy": policy,
    }


class _Draws:
    """Every figure of the checks resampled once, all of one unit under the same weights."""

    def __init__(self, checks: Sequence[Check], policy: GateConfig) -> None:
        self._found: dict[int, Resampled] = {}
        for unit in ("prompts", "groups"):
            chosen = [check for check in checks if check.unit == unit]
            figures = {id(figure): figure for check in chosen for figure in _figures(check)}
            if figures:
                resampled = resample(list(figures.values()), chosen[0].units, policy.resamples)
                self._found |= dict(zip(figures, resampled, strict=True))

    def __getitem__(self, figure: Figure) -> Resampled:
        return self._found[id(figure)]


def _figures(check: Check) -> list[Figure]:
    return [check.figure, check.opposite, check.alike, *([] if check.more is None else [check.more])]


def _prospect(check: Check, drawn: _Draws, policy: GateConfig) -> Prospect:
    return prospect(drawn[check.alike], check.units, check.limit, check.alike_value, policy.confidence)


def _condition(
    check: Check, drawn: _Draws, policy: GateConfig, violating: float, prospect: Prospect | None
) -> Condition:
    """``violating``: the confidence of the opposite bound, which is told of what has no prospect."""
    upper = drawn[check.figure].upper(policy.confidence)
    lower = -drawn[check.opposite].upper(1.0 - (1.0 - violating) / check.caution)
    more = check.more is None or drawn[check.more].upper(violating) < -_ROUNDING
    least = _least(check, policy)
    needed = None if prospect is None else units_needed([prospect], policy.min_power)
    return Condition(
        of=check.of,
        against=check.against,
        name=check.name,
        value=_told(check, drawn[check.figure].value),
        bound=_told(check, lower if prospect is None else upper),
        limit=_told(check, check.limit),
        holds=upper <= check.limit + _ROUNDING,
        violated=lower > check.limit + _ROUNDING and more,
        power=None if prospect is None else chance([prospect], check.units),
        unit=check.unit,
        units=check.units,
        units_needed=None if needed is None else max(needed, least),
        units_least=least,
    )


def _told(check: Check, value: float) -> float:
    return check.sign * value + 0.0  # a plain zero, not the negative one


def _least(check: Check, policy: GateConfig) -> int:
    return units_for(check.unseen_share, policy.confidence, policy.resamples)


def _together(
    checks: list[Check], prospects: dict[int, Prospect], policy: GateConfig
) -> tuple[float, int | None, int | None]:
    """Chance of all limits, and fewest prompts and groups for the chance that is asked for.

    The two kinds of units count as independent. What one leaves of the chance is asked of the other; when neither
    leaves enough, both are asked for its square root.
    """
    asked, root = policy.min_power, math.sqrt(policy.min_power)
    sides = [[check for check in checks if check.unit == unit] for unit in ("prompts", "groups")]
    of_side = [[prospects[id(check)] for check in side] for side in sides]
    chances = [chance(some, some[0].units) if some else 1.0 for some in of_side]
    needed: list[int | None] = []
    for side, some, other in zip(sides, of_side, reversed(chances), strict=True):
        enough = units_needed(some, min(asked / other if other > root else root, 0.999))
        needed.append(None if enough is None else max([enough, *(_least(check, policy) for check in side)]))
    return chances[0] * chances[1], needed[0], needed[1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
