"""The reference's forward pass over pairs (no Ray: the actor calls it, and so can a test)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.config import Tier
from pipeline.models.batches import token_batches
from pipeline.models.load import final_hidden, output_head
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairTokens
from pipeline.reference.shards import ShardRow
from pipeline.risk.sequence_head import sequence_logps


@torch.no_grad()
def reference_rows(
    model: nn.Module,
    pairs: Sequence[PairTokens],
    tier: Tier,
    *,
    pad_id: int,
    batch_tokens: int,
    block_bytes: int,
    device: torch.device,
) -> list[ShardRow]:
    """What the reference says about every pair, in the given order; hidden states come back on CPU."""
    prompts = [pair.prompt_ids for pair in pairs for _ in range(2)]
    responses = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    logps: list[float] = [0.0] * len(responses)
    hidden: list[Tensor] = [torch.empty(0)] * len(responses)
    head = output_head(model)
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    for positions in token_batches(lengths, batch_tokens):
        batch = pad_sequences([prompts[i] for i in positions], [responses[i] for i in positions], pad_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        states = final_hidden(model, batch["input_ids"], batch["attention_mask"])
        sums = sequence_logps(states, head, batch["labels"], batch["mask"], block_bytes=block_bytes).tolist()
        for row, position in enumerate(positions):
            logps[position] = sums[row]
            if tier == "hidden":
                hidden[position] = states[row][batch["mask"][row]].cpu()
    return [
        ShardRow(
            pair.row_id,
            pair.content,
            (logps[2 * i], logps[2 * i + 1]),
            (hidden[2 * i], hidden[2 * i + 1]) if tier == "hidden" else None,
        )
        for i, pair in enumerate(pairs)
    ]
