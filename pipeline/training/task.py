"""What the training loop asks of an algorithm; the loop itself knows none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from pipeline.risk.head import Head

Batch = Mapping[str, Tensor]
"""Tensors of one micro-batch; ``input_ids`` and ``attention_mask`` ``[B, T]`` feed the backbone."""


class Task(Protocol):
    """One objective over numbered rows."""

    num_rows: int
    metric_names: tuple[str, ...]
    tails: Mapping[str, tuple[str, int]]
    """Metrics of the worst rows of a validation: name to (a column of the objective, 1 where large is bad and -1 where
    small is)."""

    def normaliser(self, rows: Sequence[int]) -> float:
        """What the summed loss of a *global* batch is divided by (pairs, tokens); worker count never enters."""

    def row_id(self, row: int) -> str:
        """What the data call a row."""

    def collate(self, rows: Sequence[int | None]) -> Batch:
        """One micro-batch; None is padding with weight zero."""

    def objective(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss (scalar) and the metrics of every row ``[rows, len(metric_names)]``, zeros for padding; the last
        column is what a row counts in the `normaliser`."""
