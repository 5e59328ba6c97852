"""The preference losses as a task over tokenised pairs and their precomputed reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config import SEQUENTIAL_METHODS, LossConfig, RiskConfig
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairTokens
from pipeline.risk.head import Head, Reference
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import trained_measure
from pipeline.risk.pair_head import pair_loss
from pipeline.training.task import Batch


class ReferenceRows(Protocol):
    """Where the reference's numbers come from (a cache's rows, or a live model)."""

    @property
    def has_law(self) -> bool:
        """Whether the reference's distribution is known at every position, exactly or as a lower bound."""

    def collate(self, row_ids: Sequence[str | None]) -> Mapping[str, Tensor]:
        """The reference's part of a batch on CPU; None is padding, which has no positions."""

    def record(self, batch: Batch) -> Reference:
        """The record that the losses take, from a whole batch on the trainer's device."""


class PreferenceTask:
    """One micro-batch holds the chosen responses of its pairs, then the rejected ones."""

    def __init__(
        self,
        pairs: Sequence[PairTokens],
        reference: ReferenceRows,
        loss: LossConfig,
        risk: RiskConfig,
        pad_id: int,
        head_block_bytes: int,
    ) -> None:
        self._pairs = pairs
        self._reference = reference
        self._form = pair_form(loss.method, loss.beta, loss.alpha)
        self._measure = trained_measure(loss, risk)
        self._pad_id = pad_id
        self._block_bytes = head_block_bytes
        self.num_rows = len(pairs)
        names = ["loss", "reward_accuracy", "reward_margin", "chosen_logps_change", "rejected_logps_change"]
        if reference.has_law:
            names += ["chosen_kl", "rejected_kl", "chosen_risk", "rejected_risk"]
        if loss.method in SEQUENTIAL_METHODS:
            names.append("implicit_reward_accuracy")
        self.metric_names = (*names, "pairs")
        tails = {"worst_reward_margin": ("reward_margin", -1)}
        if reference.has_law:
            tails["worst_chosen_kl"] = ("chosen_kl", 1)
        self.tails: Mapping[str, tuple[str, int]] = tails

    def normaliser(self, rows: Sequence[int]) -> float:
        return float(len(rows))

    def row_id(self, row: int) -> str:
        return self._pairs[row].row_id

    def collate(self, rows: Sequence[int | None]) -> Batch:
        pairs = [None if row is None else self._pairs[row] for row in rows]
        prompts: list[list[int]] = [pair.prompt_ids if pair else [] for pair in pairs]
        responses = [pair.chosen_ids if pair else [] for pair in pairs]
        responses += [pair.rejected_ids if pair else [] for pair in pairs]
        batch = pad_sequences(prompts * 2, responses, self._pad_id)
        batch["weight"] = torch.tensor([0.0 if pair is None else 1.0 for pair in pairs])
        batch |= self._reference.collate([None if pair is None else pair.row_id for pair in pairs])
        return batch

    def objective(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        reference = self._reference.record(batch)
        weight = batch["weight"].to(hidden.device)
        scores = pair_loss(
            hidden,
            head,
            reference,
            batch["labels"],
            batch["mask"],
            self._measure,
            self._form,
            weight,
            block_bytes=self._block_bytes,
            check_finite=False,  # the engine looks at the sums of all ranks and stops all of them
        )
        chosen_change, rejected_change = (scores.logps - scores.ref_logps).chunk(2)
        margin = chosen_change - rejected_change
        columns = {
            "loss": scores.losses,
            "reward_accuracy": (margin > 0).to(margin),
            "reward_margin": margin,
            "chosen_logps_change": chosen_change,
            "rejected_logps_change": rejected_change,
            "pairs": torch.ones_like(margin),
        }
        if scores.kl is not None and scores.risk is not None:
            columns["chosen_kl"], columns["rejected_kl"] = scores.kl.chunk(2)
            columns["chosen_risk"], columns["rejected_risk"] = chosen_risk, rejected_risk = scores.risk.chunk(2)
            columns["implicit_reward_accuracy"] = (margin + chosen_risk - rejected_risk > 0).to(margin)
        return scores.loss, torch.stack([columns[name] * weight for name in self.metric_names], dim=1)
