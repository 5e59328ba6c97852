"""The training loop: batches in a fixed order, one engine step each, validation every so often.

It knows neither the algorithm (a `Task`) nor DeepSpeed's insides (an `Engine`). All that it carries from step to step
is a `LoopState`, so that it goes on from any checkpoint as if nothing had happened.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.config import GuardConfig, OptimConfig
from pipeline.data.order import global_batch, num_batches, shard
from pipeline.errors import TrainingError
from pipeline.training import guard
from pipeline.training.engine import Engine, StepResult
from pipeline.training.prefetch import ahead
from pipeline.training.schedule import learning_rate
from pipeline.training.state import LoopState
from pipeline.training.task import Batch, Task

TAIL = 0.1
"""Share of the validation rows that count as the worst."""


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
    """Zero: never."""
    optim: OptimConfig
    guard: GuardConfig = field(default_factory=GuardConfig)


class SpikeError(Exception):
    """Every rank found the same spike: the run has to go back to its last good checkpoint."""

    def __init__(self, state: LoopState, loss: float) -> None:
        super().__init__(f"the loss jumped to {loss:.4g} at step {state.step}")
        self.state = state
        self.loss = loss


class Listener:
    """Who is told what happens (logs, checkpoints, a progress bar), every rank its own; this one does nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """One row of metrics, the same on every rank."""

    def alive(self, step: int, total: int, note: str) -> None:
        """Something was computed; ``step`` steps are done."""

    def skipped(self, step: int, record: dict[str, Any]) -> str:
        """Step ``step`` (from 0) changed nothing; returns where that is written down."""
        return "no file"

    def after_step(self, state: LoopState) -> None:
        """A step is done, and it was not the last one."""


def micro_batches_per_step(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes per worker and optimiser step."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


def train(
    engine: Engine,
    task: Task,
    validation: Task | None,
    plan: LoopPlan,
    listener: Listener,
    state: LoopState | None = None,
) -> LoopState:
    """Run all steps that are left; returns the state after the last one.

    Raises:
        TrainingError: when more steps had to be skipped than the guard allows, when a spike comes after its last
            allowed roll-back, or when a validation metric is not finite.
        SpikeError: see there.
    """
    state = state or LoopState()
    per_epoch = num_batches(task.num_rows, plan.batch_size)
    steps = ahead(_batches(engine, task, plan, state.step))
    while state.step < plan.total_steps:
        step, done = state.step, state.step + 1
        epoch = step // per_epoch
        lr = learning_rate(plan.optim, step, plan.total_steps) * state.guard.lr_scale
        began = time.monotonic()
        rows, micro_batches = next(steps)
        result = engine.train_step(micro_batches, task, task.normaliser(rows), lr)
        seconds = state.seconds + time.monotonic() - began
        ids = [task.row_id(row) for row in rows]
        place = {"step": done, "epoch": epoch}
        if result.fault:
            state = LoopState(done, seconds, guard.skip(state.guard, step))
            _skip(listener, plan, state, place | {"lr": lr, "fault": result.fault, "row_ids": ids})
            note = f"step left out, its {result.fault} is not finite"
        else:
            metrics = _means(task, result.sums, task.normaliser(rows))
            after = guard.take(state.guard, step, metrics["loss"], plan.guard)
            spike = len(after.spikes) > len(state.guard.spikes)
            state = LoopState(done, seconds, after)
            listener.row(_train_row(place, metrics, lr, result, ids) | ({"spike": True} if spike else {}))
            if spike and plan.guard.on_spike == "roll_back":
                _refuse_endless(state, metrics["loss"], plan.guard)
                raise SpikeError(state, metrics["loss"])
            note = f"loss {metrics['loss']:.3f}"
        last = done == plan.total_steps
        if validation is not None and (last or done % plan.eval_every_steps == 0):
            alive = functools.partial(listener.alive, done, plan.total_steps, "validation")
            values = evaluate(engine, validation, plan, alive)
            listener.row({"step": done, "split": "validation", "epoch": epoch, **values})
        listener.alive(done, plan.total_steps, note)
        if not last:
            listener.after_step(state)
    return state


def _train_row(
    place: dict[str, Any], metrics: dict[str, float], lr: float, result: StepResult, ids: list[str]
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    return {"split": "train", **place, **metrics, "lr": lr, "grad_norm": result.grad_norm, "rows": digest}


def _skip(listener: Listener, plan: LoopPlan, state: LoopState, record: dict[str, Any]) -> None:
    where = listener.skipped(state.step - 1, record)
    count = len(state.guard.skipped)
    listener.row({"split": "skipped", **record, "skipped_steps": count})
    if count > plan.guard.max_skipped_steps:
        raise TrainingError(
            f"the {record['fault']} is not finite at step {state.step}, and {count - 1} earlier step(s) were left out "
            f"for that (guard.max_skipped_steps = {plan.guard.max_skipped_steps}): the rows are in {where}. A "
            "response has probability zero under the policy, a row is faulty, or training diverged: look at the rows, "
            "lower optim.lr, or raise loss.beta"
        )


def _refuse_endless(state: LoopState, loss: float, config: GuardConfig) -> None:
    if state.guard.roll_backs >= config.max_roll_backs:
        raise TrainingError(
            f"the loss jumped to {loss:.4g} at step {state.step}, after {state.guard.roll_backs} roll-back(s) "
            f"(guard.max_roll_backs = {config.max_roll_backs}): lower optim.lr, or look at the data of these steps"
        )


def _batches(engine: Engine, task: Task, plan: LoopPlan, first: int) -> Iterator[tuple[list[int], list[Batch]]]:
    """For every step the global batch's rows and this rank's micro-batches."""
    per_epoch = num_batches(task.num_rows, plan.batch_size)
    for step in range(first, plan.total_steps):
        rows = global_batch(task.num_rows, plan.batch_size, plan.seed, *divmod(step, per_epoch))
        mine = shard(rows, engine.rank, engine.world_size, plan.micro_batch_size)
        # A short last batch is filled up with padding of weight zero.
        mine += [[None]] * (engine.micro_batches - len(mine))
        yield rows, [task.collate(micro) for micro in mine]


def evaluate(engine: Engine, task: Task, plan: LoopPlan, alive: Callable[[], None]) -> dict[str, float]:
    """Metrics over all rows of a task, and means over the worst `TAIL` of them; three micro-batches in memory at a
    time."""
    rows = list(range(task.num_rows))
    mine = shard(rows, engine.rank, engine.world_size, plan.micro_batch_size)

    def batches() -> Iterator[Batch]:
        for batch in ahead(task.collate(micro) for micro in mine):
            alive()
            yield batch

    columns = engine.evaluate(batches(), task)
    counted = columns[columns[:, -1] > 0]
    worst = {
        name: sign * worst_mean(sign * counted[:, task.metric_names.index(column)])
        for name, (column, sign) in task.tails.items()
    }
    return _means(task, columns.sum(dim=0), task.normaliser(rows)) | worst


def worst_mean(values: Tensor) -> float:
    """Mean of the largest `TAIL` of the values ``[N]``, at least of one."""
    return values.topk(max(1, round(TAIL * len(values)))).values.mean().item()


def _means(task: Task, sums: Tensor, normaliser: float) -> dict[str, float]:
    values = dict(zip(task.metric_names, sums.tolist(), strict=True))
    count = values.popitem()[1]
    assert abs(count - normaliser) <= 1e-3 * normaliser, "every row counts exactly once"
    return {name: value / normaliser for name, value in values.items()} | {task.metric_names[-1]: count}
