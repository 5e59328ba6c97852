"""What a user tolerates of a policy (nothing heavy is imported here)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Tolerance:
    """Limits that a run has to keep, None for no limit, and what is best among those that keep them.

    Raises:
        ConfigError: for a limit that is below zero or no number, or a share above one.
    """

    tail_drop: float | None = None
    """By how much the policy's worst outputs (evaluation.tail_fraction of them) may score below the reference's."""
    max_drift: float | None = None
    """Sequential KL from the reference on held-out chosen responses, nats a response."""
    max_incidents: float | None = None
    """Share of outputs whose primary score is below evaluation.incident_below, 0 to 1."""
    cost_per_incident: float | None = None
    """With a cost, the least expected cost is best; without one, the best average score."""
    whole_interval: bool = False
    """Hold the worse end of every interval against the limits, and not the figure itself."""
    allow_decayed: bool = False
    """Also take a run whose text shows signs of decay (`pipeline.evaluation.verdict`)."""

    def __post_init__(self) -> None:
        for name in ("tail_drop", "max_drift", "max_incidents", "cost_per_incident"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"--{name}: must be a number, 0 or more, got {value:g}")
        if self.max_incidents is not None and self.max_incidents > 1:
            raise ConfigError(f"--max_incidents: must be a share of outputs, 0 to 1, got {self.max_incidents:g}")
