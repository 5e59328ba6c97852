"""What reference and policy say about given texts, token by token, with both models at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.models.load import final_hidden, output_head
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairScores, PairTokens, SampleRow, ScoredSample
from pipeline.risk.head import HiddenReference
from pipeline.risk.measures import Measure
from pipeline.risk.sequence_head import TokenScores, token_scores

FIXED_MEASURES = (Measure("mean"), Measure("cvar", 0.5), Measure("cvar", 0.1))
"""Reported for every run, so that runs with different methods and measures compare."""


def reported_measures(trained: Measure) -> tuple[Measure, ...]:
    """The fixed measures and the trained one, each once."""
    fixed = {measure.label for measure in FIXED_MEASURES}
    return FIXED_MEASURES if trained.label in fixed else (*FIXED_MEASURES, trained)


class BothModels:
    """Reference and policy on one device.

    Args:
        measures: whose per-token values are computed.
        block_bytes: memory for one block of positions in the output heads.
    """

    def __init__(
        self,
        reference: nn.Module,
        policy: nn.Module,
        tokenizer: Any,
        measures: tuple[Measure, ...],
        block_bytes: int,
        device: torch.device,
    ) -> None:
        self._reference, self._policy, self._tokenizer = reference, policy, tokenizer
        self._measures, self._block_bytes, self._device = measures, block_bytes, device
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @torch.no_grad()
    def score(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[TokenScores]:
        """Per-token scores of every response, on CPU; one batch."""
        batch = pad_sequences(prompts, responses, self._pad_id)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        inputs = batch["input_ids"], batch["attention_mask"]
        reference = HiddenReference(final_hidden(self._reference, *inputs)[batch["mask"]], output_head(self._reference))
        scores = token_scores(
            final_hidden(self._policy, *inputs),
            output_head(self._policy),
            reference,
            batch["labels"],
            batch["mask"],
            self._measures,
            block_bytes=self._block_bytes,
        )
        sizes = [len(response) for response in responses]
        logps, ref_logps = scores.logps.cpu().split(sizes), scores.ref_logps.cpu().split(sizes)
        risk = {label: values.cpu().split(sizes) for label, values in scores.risk.items()}
        return [
            TokenScores(logps[i], ref_logps[i], {label: parts[i] for label, parts in risk.items()})
            for i in range(len(sizes))
        ]

    def samples(self, model: str, rows: Sequence[SampleRow], trained: Measure, prompt_set: str) -> list[ScoredSample]:
        """Samples of one model with log-ratio, KL and trained risk of every token."""
        scored = self.score([row.prompt_ids for row in rows], [row.response_ids for row in rows])
        return [self._sample(model, row, score, trained, prompt_set) for row, score in zip(rows, scored, strict=True)]

    def _sample(
        self, model: str, row: SampleRow, score: TokenScores, trained: Measure, prompt_set: str
    ) -> ScoredSample:
        risk = score.risk[trained.label]
        position = int(risk.argmax())
        return ScoredSample(
            model="policy" if model == "policy" else "reference",
            prompt_id=row.prompt_id,
            seed=row.seed,
            prompt=row.prompt,
            text=row.text,
            finished=row.finished,
            scores=row.scores,
            tokens=[self._tokenizer.decode([token]) for token in row.response_ids],
            log_ratio=(score.logps - score.ref_logps).tolist(),
            kl=score.risk["kl"].tolist(),
            risk=risk.tolist(),
            max_risk=float(risk[position]),
            max_risk_position=position,
            prompt_set=prompt_set,
        )

    def pairs(self, pairs: Sequence[PairTokens]) -> list[PairScores]:
        """Test pairs with the sequential risk of both responses at every measure."""
        responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
        scored = self.score([pair.prompt_ids for pair in pairs] * 2, responses)
        chosen, rejected = scored[: len(pairs)], scored[len(pairs) :]
        return [self._pair(*item) for item in zip(pairs, chosen, rejected, strict=True)]

    def _pair(self, pair: PairTokens, chosen: TokenScores, rejected: TokenScores) -> PairScores:
        def text_bytes(ids: list[int]) -> int:
            return len(self._tokenizer.decode(ids, skip_special_tokens=True).encode())

        return PairScores(
            row_id=pair.row_id,
            group=pair.group,
            chosen_logp=float(chosen.logps.sum()),
            chosen_ref_logp=float(chosen.ref_logps.sum()),
            rejected_logp=float(rejected.logps.sum()),
            rejected_ref_logp=float(rejected.ref_logps.sum()),
            chosen_risk={label: float(values.sum()) for label, values in chosen.risk.items()},
            rejected_risk={label: float(values.sum()) for label, values in rejected.risk.items()},
            chosen_bytes=text_bytes(pair.chosen_ids),
            rejected_bytes=text_bytes(pair.rejected_ids),
        )
