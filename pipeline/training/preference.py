"""The preference losses as a task over tokenised pairs and their precomputed reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config import RISK_METHODS, SEQUENTIAL_METHODS, LossConfig, RiskConfig
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairTokens
from pipeline.risk.head import Head, HiddenReference, Reference, ScalarReference, sequence_scores
from pipeline.risk.losses import preference_loss
from pipeline.risk.measures import Measure
from pipeline.training.task import Batch


class ReferenceRows(Protocol):
    """Where the reference's precomputed numbers come from (a cache reader, or a live model in a test)."""

    head: Head | None
    """The frozen output head, or None for the scalar tier."""

    def hidden(self, row_id: str) -> tuple[Tensor, Tensor]:
        """Hidden states ``[T_chosen, d]`` and ``[T_rejected, d]`` at the response positions of one pair."""

    def logps(self, row_id: str) -> tuple[float, float]:
        """Log-probabilities (nats) of chosen and rejected."""


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
        self._loss = loss
        # tdpo is ra_dpo at the mean; dpo has no risk in its loss, but its curves show the sequential KL.
        self._measure = Measure(risk.measure, risk.level) if loss.method in RISK_METHODS else Measure("mean", 1.0)
        self._pad_id = pad_id
        self._block_bytes = head_block_bytes
        self.num_rows = len(pairs)
        names = ["loss", "reward_accuracy", "reward_margin", "chosen_logps_change", "rejected_logps_change"]
        if reference.head is not None:
            names += ["chosen_kl", "rejected_kl", "chosen_risk", "rejected_risk"]
        if loss.method in SEQUENTIAL_METHODS:
            names.append("implicit_reward_accuracy")
        self.metric_names = (*names, "pairs")

    def normaliser(self, rows: Sequence[int]) -> float:
        return float(len(rows))

    def collate(self, rows: Sequence[int | None]) -> Batch:
        pairs = [None if row is None else self._pairs[row] for row in rows]
        prompts: list[list[int]] = [pair.prompt_ids if pair else [] for pair in pairs]
        responses = [pair.chosen_ids if pair else [] for pair in pairs]
        responses += [pair.rejected_ids if pair else [] for pair in pairs]
        batch = pad_sequences(prompts * 2, responses, self._pad_id)
        batch["weight"] = torch.tensor([0.0 if pair is None else 1.0 for pair in pairs])
        logps = [(0.0, 0.0) if pair is None else self._reference.logps(pair.row_id) for pair in pairs]
        batch["ref_logps"] = torch.tensor([chosen for chosen, _ in logps] + [rejected for _, rejected in logps])
        if (head := self._reference.head) is not None:
            hidden = [self._reference.hidden(pair.row_id) for pair in pairs if pair is not None]
            rows_in_order = [chosen for chosen, _ in hidden] + [rejected for _, rejected in hidden]
            empty = torch.empty((0, head.weight.shape[1]), dtype=head.weight.dtype)  # on CPU, as all of a batch
            batch["ref_hidden"] = torch.cat([*rows_in_order, empty])
        return batch

    def objective(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        reference: Reference
        if self._reference.head is None:
            reference = ScalarReference(batch["ref_logps"])
        else:
            reference = HiddenReference(batch["ref_hidden"], self._reference.head)
        scores = sequence_scores(
            hidden,
            head,
            reference,
            batch["labels"],
            batch["mask"],
            self._measure,
            block_bytes=self._block_bytes,
        )
        chosen, rejected = scores.logps.chunk(2)
        chosen_ref, rejected_ref = scores.ref_logps.chunk(2)
        no_risk = (None, None)
        chosen_risk, rejected_risk = no_risk if scores.risk is None else scores.risk.chunk(2)
        pair = preference_loss(
            self._loss.method,
            chosen,
            rejected,
            chosen_ref,
            rejected_ref,
            chosen_risk,
            rejected_risk,
            beta=self._loss.beta,
            alpha=self._loss.alpha,
        )
        weight = batch["weight"].to(pair.loss)
        columns = {
            "loss": pair.loss.detach(),
            "reward_accuracy": (pair.reward_margin > 0).to(weight),
            "reward_margin": pair.reward_margin,
            "chosen_logps_change": (chosen - chosen_ref).detach(),
            "rejected_logps_change": (rejected - rejected_ref).detach(),
            "pairs": torch.ones_like(weight),
        }
        if scores.kl is not None and chosen_risk is not None and rejected_risk is not None:
            columns["chosen_kl"], columns["rejected_kl"] = scores.kl.detach().chunk(2)
            columns["chosen_risk"], columns["rejected_risk"] = chosen_risk.detach(), rejected_risk.detach()
            implicit = pair.reward_margin + columns["chosen_risk"] - columns["rejected_risk"]
            columns["implicit_reward_accuracy"] = (implicit > 0).to(weight)
        sums = torch.stack([(columns[name] * weight).sum() for name in self.metric_names])
        return (pair.loss * weight).sum(), sums
