"""Supervised fine-tuning as a task: mean negative log-likelihood per trained token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from pipeline.config import SFTConfig
from pipeline.data.order import global_batch, num_batches
from pipeline.models.sequences import pad_sequences
from pipeline.records import TextTokens
from pipeline.risk.head import Head
from pipeline.risk.sequence_head import sequence_logps
from pipeline.training.task import Batch


class SFTTask:
    """Next-token prediction on responses, or on prompts too (``loss_on: all``)."""

    metric_names: tuple[str, ...] = ("loss", "tokens")
    tails: Mapping[str, tuple[str, int]] = MappingProxyType({})

    def __init__(self, rows: Sequence[TextTokens], config: SFTConfig, pad_id: int, head_block_bytes: int) -> None:
        self._rows = rows
        self._score_prompt = config.loss_on == "all"
        self._pad_id = pad_id
        self._block_bytes = head_block_bytes
        self.num_rows = len(rows)

    def _num_scored(self, row: TextTokens) -> int:
        return len(row.response_ids) + (len(row.prompt_ids) - 1 if self._score_prompt else 0)

    def normaliser(self, rows: Sequence[int]) -> float:
        return float(max(1, sum(self._num_scored(self._rows[row]) for row in rows)))

    def row_id(self, row: int) -> str:
        return self._rows[row].row_id

    def collate(self, rows: Sequence[int | None]) -> Batch:
        chosen = [None if row is None else self._rows[row] for row in rows]
        return pad_sequences(
            [row.prompt_ids if row else [] for row in chosen],
            [row.response_ids if row else [] for row in chosen],
            self._pad_id,
            score_prompt=self._score_prompt,
        )

    def objective(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        logps = sequence_logps(
            hidden, head, batch["labels"], batch["mask"], block_bytes=self._block_bytes, check_finite=False
        )
        return -logps.sum(), torch.stack([-logps.detach(), batch["mask"].sum(dim=1).to(logps)], dim=1)


def total_steps(rows: Sequence[TextTokens], config: SFTConfig) -> int:
    """Optimiser steps of the budget: ``steps``, or as many as it takes to see ``tokens`` tokens."""
    if config.steps:
        return config.steps
    lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
    per_epoch = num_batches(len(rows), config.batch_size)
    seen = step = 0
    while seen < config.tokens:
        epoch, index = divmod(step, per_epoch)
        seen += sum(lengths[row] for row in global_batch(len(rows), config.batch_size, config.seed, epoch, index))
        step += 1
    return step
