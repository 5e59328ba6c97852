"""Where a train worker's rows, steps and signs of life go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.checkpoints.directory import RunDirectory
from pipeline.checkpoints.journal import Journal
from pipeline.training.checkpointer import Checkpointer
from pipeline.training.loop import Listener
from pipeline.training.state import LoopState


class WorkerListener(Listener):
    """Passes on what the loop says: rows to journal and tracker, steps to the checkpoints, signs of life."""

    def __init__(
        self,
        directory: RunDirectory,
        checkpoints: Checkpointer,
        journal: Journal | None,
        track: Callable[[dict[str, Any]], None],
        report: Callable[[float, float, str], None],
    ) -> None:
        self._directory, self._checkpoints, self._journal = directory, checkpoints, journal
        self._track, self._report = track, report

    def row(self, row: dict[str, Any]) -> None:
        if self._journal is not None:
            with self._directory.refusals("written"):
                self._journal.append(row)
            if row["split"] == "validation":
                self._directory.show(self._journal.rows())
            self._track(row)

    def alive(self, step: int, total: int, note: str) -> None:
        if self._journal is not None:
            self._report(step, total, note)

    def skipped(self, step: int, record: dict[str, Any]) -> str:
        if self._journal is not None:
            self._directory.note_skipped(step + 1, record)
        return self._directory.skipped_at(step + 1)

    def after_step(self, state: LoopState) -> None:
        self._checkpoints.after_step(state.step, state.to_json())
