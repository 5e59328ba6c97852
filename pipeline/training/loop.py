"""The training loop: batches in a fixed order, one engine step each, validation every so often.

It knows neither the algorithm (a `Task`) nor DeepSpeed's insides (an `Engine`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.config import OptimConfig
from pipeline.data.order import global_batch, num_batches, shard
from pipeline.training.engine import Engine
from pipeline.training.prefetch import ahead
from pipeline.training.schedule import learning_rate
from pipeline.training.task import Batch, Task


@dataclass(frozen=True)
class LoopPlan:
    """How long and in what steps to train."""

    total_steps: int
    batch_size: int
    """Rows per optimiser step over all workers."""
    micro_batch_size: int
    """Rows per worker in one forward pass."""
    seed: int
    eval_every_steps: int
    optim: OptimConfig


def micro_batches_per_step(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes per worker and optimiser step."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


def train(
    engine: Engine,
    task: Task,
    validation: Task | None,
    plan: LoopPlan,
    log: Callable[[dict[str, Any]], None],
    progress: Callable[[int, int, str], None],
) -> float:
    """Run all steps; returns the seconds spent in them, validation left out.

    ``log`` gets one row per step and one per validation (equal on every rank).
    """
    per_epoch = num_batches(task.num_rows, plan.batch_size)
    seconds = 0.0
    steps = ahead(_batches(engine, task, plan))
    for step in range(plan.total_steps):
        epoch = step // per_epoch
        lr = learning_rate(plan.optim, step, plan.total_steps)
        began = time.monotonic()
        rows, micro_batches = next(steps)
        sums = engine.train_step(micro_batches, task, task.normaliser(rows), lr)
        seconds += time.monotonic() - began
        metrics = _means(task, sums, task.normaliser(rows))
        log({"step": step + 1, "split": "train", "epoch": epoch, **metrics, "lr": lr, "grad_norm": engine.grad_norm})
        done = step + 1 == plan.total_steps
        if validation is not None and (done or (step + 1) % plan.eval_every_steps == 0):
            log({"step": step + 1, "split": "validation", "epoch": epoch, **evaluate(engine, validation, plan)})
        progress(step + 1, plan.total_steps, f"loss {metrics['loss']:.3f}")
    return seconds


def _batches(engine: Engine, task: Task, plan: LoopPlan) -> Iterator[tuple[list[int], list[Batch]]]:
    """For every step the global batch's rows and this rank's micro-batches."""
    per_epoch = num_batches(task.num_rows, plan.batch_size)
    for step in range(plan.total_steps):
        rows = global_batch(task.num_rows, plan.batch_size, plan.seed, *divmod(step, per_epoch))
        mine = shard(rows, engine.rank, engine.world_size, plan.micro_batch_size)
        # A short last batch is filled up with padding of weight zero.
        mine += [[None]] * (engine.micro_batches - len(mine))
        yield rows, [task.collate(micro) for micro in mine]


def evaluate(engine: Engine, task: Task, plan: LoopPlan) -> dict[str, float]:
    """Metrics over all rows of a task, three micro-batches in memory at a time."""
    rows = list(range(task.num_rows))
    mine = shard(rows, engine.rank, engine.world_size, plan.micro_batch_size)
    sums = engine.evaluate(ahead(task.collate(micro) for micro in mine), task)
    return _means(task, sums, task.normaliser(rows))


def _means(task: Task, sums: Tensor, normaliser: float) -> dict[str, float]:
    values = dict(zip(task.metric_names, sums.tolist(), strict=True))
    count = values.popitem()[1]
    assert abs(count - normaliser) <= 1e-3 * normaliser, "every row counts exactly once"
    return {name: value / normaliser for name, value in values.items()} | {task.metric_names[-1]: count}
