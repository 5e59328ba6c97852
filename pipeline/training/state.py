"""What the training loop carries from one step to the next, beside weights and moments."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.training.guard import GuardState


@dataclass(frozen=True)
class LoopState:
    """Where the loop is. Rate and batch are functions of ``step`` and of the plan, so they are not here."""

    step: int = 0
    """Steps done, which is the number (from 0) of the next one."""
    seconds: float = 0.0
    """Spent in them, over all attempts; what was lost in a crash is not counted."""
    guard: GuardState = field(default_factory=GuardState)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LoopState:
        return cls(value["step"], value["seconds"], GuardState.from_json(value["guard"]))
