"""What a sweep tries, and what its user tolerates (nothing heavy is imported here)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from pipeline.section import Section


class Tolerance(Section):
    """What is tolerated of a policy: limits that it has to keep (none is no limit), and what is best among those that
    keep them."""

    tail_drop: float | None = Field(None, ge=0, allow_inf_nan=False)
    """By how much the policy's worst outputs (evaluation.tail_fraction of them) may score below the reference's."""
    max_drift: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Sequential KL from the reference on held-out chosen responses, nats a response (above 0: every training
    drifts)."""
    max_incidents: float | None = Field(None, ge=0, le=1)
    """Share of outputs whose primary score is below evaluation.incident_below, 0 to 1."""
    cost_per_incident: float | None = Field(None, ge=0, allow_inf_nan=False)
    """With a cost, the least expected cost is best; without one, the best average score."""
    whole_interval: bool = False
    """Hold the worse end of every interval against the limits, and not the figure itself."""
    allow_decayed: bool = False
    """Also take a run whose text shows signs of decay (pipeline.evaluation.verdict)."""


class Range(Section):
    """Numbers from which random and optuna draw."""

    low: float
    high: float
    log: bool = False
    """Draw evenly in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"sweep.space: a range needs low below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"sweep.space: a range with log starts above 0, got {self.low:g}")
        return self


def _values_kind(values: Any) -> str:
    return "range" if isinstance(values, dict | Range) else "list"


Values = Annotated[
    Annotated[tuple[Any, ...], Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_values_kind)
]
"""What one option may be: a list of values, or a range."""


def _from_yaml(value: Any) -> Any:
    """A space given on the command line is YAML; a single part need not stand in a list."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"sweep.space: not valid YAML: {error}") from error
    if isinstance(value, list | tuple):
        return [part for one in value for part in (_from_yaml(one) if isinstance(one, str) else [one])]
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"sweep.space: options with their values are needed, such as {{risk.level: [0.97, 0.5]}}, got {value!r}"
        )
    return [value] if value else []


class SweepConfig(Section):
    """What jobs/sweep.py tries (no other job reads it)."""

    space: Annotated[tuple[dict[str, Values], ...], BeforeValidator(_from_yaml)] = ()
    """Options of loss, risk and train by dotted name, each with a list of values or, for random and optuna, a range
    {low, high, log}. A list of such mappings is a union: {loss.method: [dpo]} beside {loss.method: [ra_dpo2],
    risk.level: [0.97, 0.5]}. On the command line as YAML."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: so many drawn; optuna: drawn where the earlier ones were best under the
    tolerance (TPE)."""
    settings: PositiveInt | None = None
    """random, optuna: how many combinations."""
    search_seed: int = Field(0, ge=0)
    seeds: tuple[int, ...] = (0,)
    """Values of train.seed: every combination is run with each, and judged by the means."""
    split: Literal["validation", "test"] = "validation"
    """What the runs are judged by. validation: one is chosen, and only that and the runner-up are judged by test, which
    played no part. test: for a study, in which all are reported."""
    trials_at_once: PositiveInt | None = None
    """Runs side by side; none is as many as the cluster has room for."""
    early_stop: Literal["none", "asha"] = "none"
    """asha: runs that are behind on the validation pairs at a quarter and a half of their steps are ended."""
    early_stop_metric: Literal["worst_reward_margin", "worst_chosen_kl", "reward_accuracy"] = "worst_reward_margin"
    """asha: mean reward margin of the worst tenth of the validation pairs (more is better), their mean KL where it is
    largest (less is better), or the share of pairs in the right order."""
    early_stop_factor: int = Field(2, ge=2)
    """asha: one of so many goes on."""
    pilot_keep: float = Field(0.5, gt=0, le=1)
    """--pilot: share of the combinations that are repeated on everything."""
    tolerance: Tolerance = Tolerance()

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("sweep.seeds must be one or more different numbers, none negative")
        if (self.search == "grid") != (self.settings is None):
            raise ValueError(
                "sweep.settings says how many combinations sweep.search random and optuna draw: set it with these, and "
                "leave it out with grid"
            )
        return self
