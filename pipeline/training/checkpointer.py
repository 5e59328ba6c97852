"""When a checkpoint is due, and writing it beside the training.

At a checkpoint every rank copies its part of the optimiser's numbers and goes on; a thread of its own writes the copy,
and when the threads of all ranks have theirs safe on the disk, rank 0's makes it a checkpoint. The threads speak over
a process group of their own, so that they never stand in the way of the training's.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints import rng
from pipeline.checkpoints.directory import RunDirectory
from pipeline.checkpoints.journal import Journal
from pipeline.checkpoints.layout import KINDS, METRICS, StoredFile, as_json, rank_file, write_rows, write_tensors
from pipeline.config import CheckpointConfig, GuardConfig
from pipeline.errors import ArtifactError
from pipeline.training.engine import Engine

_NICENESS = 10


class Checkpointer:
    """One rank's share in the checkpoints of a run.

    Args:
        directory: the run's; rank 0 holds it for writing.
        journal: the metrics; None on other ranks than 0.
        facts: what every manifest says beside its own step, such as the sampler's seed.
    """

    def __init__(
        self,
        directory: RunDirectory,
        engine: Engine,
        config: CheckpointConfig,
        guard: GuardConfig,
        journal: Journal | None,
        facts: Mapping[str, Any],
    ) -> None:
        self._directory, self._engine, self._config, self._journal = directory, engine, config, journal
        self._also_every = guard.roll_back_every_steps if guard.on_spike == "roll_back" else None
        self._facts = dict(facts)
        self._group = torch.distributed.new_group(backend="gloo")
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds = 0.0
        """The training's own time spent here so far: copying, and waiting for an earlier one."""
        self.count = 0

    def begin(self, state: Mapping[str, Any]) -> None:
        """Before the first step: a training that may have to go back needs a place to go back to."""
        if self._also_every is not None:
            self._take(0, dict(state))

    def after_step(self, step: int, state: Mapping[str, Any]) -> None:
        """Take a checkpoint if rank 0 finds one due. Every rank calls this after every step but the last.

        Args:
            step: steps done.
            state: the loop's, as JSON.

        Raises:
            ArtifactError: when an earlier one could not be written, on any rank.
        """
        began = time.monotonic()
        self._raise_error()
        if self._engine.agree(self._engine.rank == 0 and self._due(step)):
            self._join()
            self._take(step, dict(state))
        self.seconds += time.monotonic() - began

    def finish(self) -> None:
        """Wait for the one that is being written."""
        self._join()

    def _due(self, step: int) -> bool:
        if any(every is not None and step % every == 0 for every in (self._config.every_steps, self._also_every)):
            return True
        idle = self._thread is None or not self._thread.is_alive()
        return idle and time.monotonic() - self._began >= self._config.every_s

    def _take(self, step: int, state: dict[str, Any]) -> None:
        self._began = time.monotonic()
        self.count += 1
        tensors: dict[str, Tensor] = {}
        starts = {}
        for part in self._engine.slices():
            starts[part.name] = part.start
            for kind in KINDS:
                tensors[f"{kind}/{part.name}"] = getattr(part, kind).detach().to("cpu", copy=True)
        states, rest = rng.capture(self._engine.device)
        metadata = {"starts": json.dumps(starts), "rng": rest}
        manifest = {
            **self._facts,
            "step": step,
            "loop": state,
            "world_size": self._engine.world_size,
            "zero_stage": self._engine.zero_stage,
            "parameters": {name: list(shape) for name, shape in self._engine.shapes().items()},
            "optimizer": self._engine.optimizer_state(),
        }
        rows = self._journal.rows() if self._journal is not None else None
        self._thread = threading.Thread(
            target=self._write, args=(step, tensors | states, metadata, manifest, rows), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _write(
        self,
        step: int,
        tensors: dict[str, Tensor],
        metadata: dict[str, str],
        manifest: dict[str, Any],
        rows: bytes | None,
    ) -> None:
        """Write this rank's file, and as rank 0 (which alone has ``rows``, the metrics) what belongs to all."""
        _give_way()
        try:
            mine: StoredFile | ArtifactError
            try:
                with self._directory.refusals("written"):
                    staging = self._directory.staging(step)
                    mine = write_tensors(staging / rank_file(self._engine.rank), tensors, metadata)
                    metrics = write_rows(staging / METRICS, rows) if rows is not None else None
                for file in filter(None, (mine, metrics)):
                    self._directory.hand_in(step, file)
            except ArtifactError as error:
                mine = error
            written: list[Any] = [None] * self._engine.world_size
            torch.distributed.all_gather_object(written, mine, group=self._group)
            for one in written:
                if isinstance(one, ArtifactError):
                    raise one  # on every rank, so that none waits for another
            if metrics is not None:
                files = {"files": [as_json(one) for one in written], "metrics": as_json(metrics), "rows_since": []}
                self._directory.commit(step, manifest | files)
                self._directory.prune(self._config.keep, self._also_every)
        except BaseException as error:
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _give_way() -> None:
    """Let this thread have what the training leaves of the processors: there the threads of one product wait for the
    last of them, so that whoever takes a core from one takes it from all."""
    with contextlib.suppress(OSError):  # a priority is a favour
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
