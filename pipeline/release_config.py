"""What a policy has to show before it goes into production, where versions are kept, and in which language people read
of it (nothing heavy is imported here)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section

Language = Literal["en", "ja"]

_DRAWS_BEYOND = 25
"""Resamples beyond a bound, so that even a seventh of them leaves one to take."""


class GateConfig(Section):
    """The written policy of the gate (pipeline.release.gate). A limit holds when the whole one-sided interval at
    'confidence' lies on its good side; none is no limit. The limits are what 80 prompts with 4 seeds and 107 groups of
    pairs can show: in such an evaluation a policy that equals the reference is promoted more often than not."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of every one-sided interval: a policy that breaks a limit is promoted with probability 1 - confidence at most."""
    mean_drop: float | None = Field(0.15, gt=0, allow_inf_nan=False)
    """By how much the average primary score may lie below the reference's, and below that of what is in production."""
    tail_drop: float | None = Field(0.45, gt=0, allow_inf_nan=False)
    """By how much the worst outputs (the mean of evaluation.tail_fraction of them) may score below the same two."""
    max_drift: float | None = Field(25.0, gt=0, allow_inf_nan=False)
    """Sequential KL from the reference on held-out chosen responses, nats a response. One response counts as ten times
    the limit at most, so that the mean has an interval."""
    max_incidents: float | None = Field(0.15, gt=0, lt=1)
    """Share of outputs whose primary score is below evaluation.incident_below."""
    max_repetition_rise: float | None = Field(0.1, gt=0, lt=1)
    """Rise of the share of repeated four-word sequences above the reference's."""
    min_length: float | None = Field(0.5, gt=0, lt=1)
    """Mean length of the outputs as a share of the reference's."""
    max_bits_rise: float | None = Field(0.1, gt=0, allow_inf_nan=False)
    """Relative rise of bits per byte of held-out real text. A group of pairs counts as five times the limit at most."""
    score_range: tuple[float, float] | None = None
    """Least and largest value of the primary score; what lies outside counts as the nearer end. None takes the
    scorer's own (shipped scorers, and functions with an attribute score_range)."""
    min_power: float = Field(0.8, gt=0, lt=1)
    """A probability below this of promoting a policy that is no worse than what it is held against is called too few
    samples."""
    resamples: int = Field(4000, ge=500)
    """Weighted resamples behind every interval. The fewer, the wider it is made."""

    @model_validator(mode="after")
    def _check(self) -> GateConfig:
        limits = (self.mean_drop, self.tail_drop, self.max_drift, self.max_incidents)
        if all(limit is None for limit in limits):
            raise ValueError(
                "gate: mean_drop, tail_drop, max_drift and max_incidents are all none, so that everything would be "
                "promoted: set one of them, or --registry.enabled false"
            )
        if self.resamples * (1 - self.confidence) < _DRAWS_BEYOND - 1e-6:
            raise ValueError(
                f"gate.resamples is {self.resamples}, too few for gate.confidence {self.confidence:g}: set it to "
                f"{math.ceil(_DRAWS_BEYOND / (1 - self.confidence) - 1e-6)} or more"
            )
        if self.score_range is not None:
            low, high = self.score_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"gate.score_range: two finite numbers are needed, the smaller one first, got {low:g} {high:g}"
                )
            for name, drop in (("mean_drop", self.mean_drop), ("tail_drop", self.tail_drop)):
                if drop is not None and drop >= high - low:
                    raise ValueError(
                        f"gate.{name} is {drop:g}, but no score of gate.score_range {low:g} {high:g} can drop by more "
                        "than that: the limit would mean nothing; lower it, or set it to none"
                    )
        return self


class RegistryConfig(Section):
    """Where versions of the policy are kept (pipeline.release.registry)."""

    enabled: bool = True
    """Judge the policy by the gate, register it and move the alias; without it a run ends with its report."""
    root: str | None = None
    """A directory that every node sees, or a URL such as s3://bucket/prefix. None is 'registry' below the storage."""
    line: str | None = Field(None, pattern=r"^[0-9a-f]{1,64}$")
    """Go on with this line (its name, or how that begins): its reference, version 0, is the model, so that data may
    grow while the reference stays. Nothing is built or fine-tuned then, whatever model and sft say. None begins, or
    finds, the line of the run's own reference."""
    alias: str = Field("production", pattern=r"^[a-z][a-z0-9_-]{0,30}$")
    """What the gate moves, and what it compares with."""
    decisions: Literal["act", "record"] = "act"
    """act: the gate's decision moves the alias; record: it is written down, and a person moves it."""

    @model_validator(mode="after")
    def _check(self) -> RegistryConfig:
        if self.alias in ("reference", "candidate"):
            raise ValueError(
                f"registry.alias is {self.alias!r}, a name of the registry's own (the reference is version 0 for ever, "
                "the candidate what was judged last): give another one, such as production"
            )
        return self


class ReportConfig(Section):
    """How people read of a run."""

    language: Language = "en"
    """Of reports, model cards and comparisons."""
