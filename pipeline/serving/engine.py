"""One thread that decodes: several batches in turns, token by token, so that nobody waits for a long output to end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.serving.decoding import Batch, Row


class FullError(RuntimeError):
    """As many rows wait as may, or none may any more."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in memory."""

    version: int
    id: str
    """Of its contents, by the registry."""
    model: nn.Module
    tokenizer: Any
    tokenizer_digest: str
    context_tokens: int
    vocabulary: int
    device: torch.device


@dataclass(frozen=True)
class Load:
    """What the engine has to do now."""

    waiting: int
    """Rows."""
    running: int


class Engine:
    """Decodes rows in a thread of its own.

    Args:
        max_rows: of one batch.
        max_batch_tokens: of all rows of a batch, each as long as its longest prompt and output: what keys and values
            take memory for. A single row is decoded however long it is.
        max_batches: that take turns. What comes meanwhile waits, and is decoded together when one has ended.
        max_waiting: rows that may wait.
        batch_wait_s: how long an idle engine waits for company for the first row.
    """

    def __init__(
        self, *, max_rows: int, max_batch_tokens: int, max_batches: int, max_waiting: int, batch_wait_s: float
    ) -> None:
        self._max_rows, self._max_batches, self._max_waiting = max_rows, max_batches, max_waiting
        self._max_batch_tokens = max_batch_tokens
        self._batch_wait_s = batch_wait_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Loaded, Row]] = deque()
        self._batches: list[Batch] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(self, loaded: Loaded, rows: Sequence[Row]) -> None:
        """Decode these rows of one version, as soon as it is their turn.

        Raises:
            FullError: when they are too many beside those that wait, or the engine was closed; none of them is taken.
        """
        with self._changed:
            if self._closed:
                raise FullError("the service is shutting down")
            if len(self._waiting) + len(rows) > self._max_waiting:
                raise FullError(f"{len(self._waiting)} outputs wait already, {self._max_waiting} may")
            self._waiting.extend((loaded, row) for row in rows)
            self._changed.notify()

    def load(self) -> Load:
        """How much there is to do."""
        with self._changed:
            return Load(len(self._waiting), sum(len(batch) for batch in self._batches))

    def close(self) -> None:
        """Stop after the step under way; rows that have not ended are told so."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._begin():
            for batch in self._batches:
                try:
                    batch.step()
                except Exception as error:  # out of memory, an architecture that does not fit: the others go on
                    batch.fail(error)
            self._batches = [batch for batch in self._batches if len(batch)]
        closed = RuntimeError("the service is shutting down")
        for batch in self._batches:
            batch.fail(closed)
        for _, row in self._waiting:
            row.tell(closed)

    def _begin(self) -> bool:
        """Make batches of what waits, and wait when there is nothing to do; false at the end."""
        with self._changed:
            if not self._batches and not self._closed:
                if not self._waiting:
                    self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                until = time.monotonic() + self._batch_wait_s
                while len(self._waiting) < self._max_rows and not self._closed:
                    if (left := until - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
            if self._closed:
                return False
            taken = self._take() if len(self._batches) < self._max_batches else []
        if taken:
            loaded = taken[0][0]
            rows = [row for _, row in taken]
            try:
                self._batches.append(Batch(loaded.model, loaded.tokenizer, rows, loaded.device))
            except Exception as error:  # as in a step: this thread has to live on
                for row in rows:
                    row.tell(error)
        return True

    def _take(self) -> list[tuple[Loaded, Row]]:
        """The oldest row that waits, and as many others of its version as go with it."""
        there = [one for one in self._waiting if not one[1].cancelled]
        taken = self._fitting([one for one in there if one[0] is there[0][0]][: self._max_rows])
        chosen = {id(one[1]) for one in taken}
        self._waiting = deque(one for one in there if id(one[1]) not in chosen)
        return taken

    def _fitting(self, rows: Sequence[tuple[Loaded, Row]]) -> list[tuple[Loaded, Row]]:
        """The first rows that go into one batch together, one at least."""
        prompt = output = 0
        for count, (_, row) in enumerate(rows):
            prompt, output = max(prompt, len(row.prompt_ids)), max(output, row.settings.max_tokens)
            if count and (count + 1) * (prompt + output) > self._max_batch_tokens:
                return list(rows[:count])
        return list(rows)
