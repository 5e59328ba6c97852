"""Learning rate as a pure function of the step, so that nothing about it needs to be saved."""

from __future__ import annotations

import math

from pipeline.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of optimiser step ``step`` (0-based) of ``total_steps``.

    Rises linearly over ``warmup_steps`` (the first step already moves), then stays or falls toward zero, which
    it would reach one step after the last.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    if optim.schedule == "linear":
        return optim.lr * max(0.0, 1.0 - progress)
    return optim.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
