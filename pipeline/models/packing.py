"""One pass over a pair: its prompt once, then both responses, each blind to the other.

A causal model's states at the prompt do not depend on what follows, so computing a pair as two sequences computes
the prompt twice. Here a row holds ``prompt + chosen + rejected``; positions restart after the prompt for the
rejected response, and an attention mask keeps the two responses apart. The last token of a response is only ever
predicted, so it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.load import final_hidden
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairTokens

_PROBE = ((5, 7, 4), (11, 2, 9), (3, 1, 6))
"""(prompt, chosen, rejected) lengths of pairs on which `can_pack` compares both ways, before the longest one."""


@dataclass(frozen=True)
class PackedPairs:
    """Right-padded rows and where their responses are predicted."""

    input_ids: Tensor
    """``[B, T]`` int64."""
    position_ids: Tensor
    """``[B, T]`` int64."""
    attends: Tensor
    """``[B, 1, T, T]`` bool: query, key."""
    predicting: list[tuple[Tensor, Tensor]]
    """For each pair the columns whose states predict the tokens of chosen ``[T_chosen]`` and rejected."""


def packed_length(pair: PairTokens) -> int:
    """Positions that are computed for a pair."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) - 2


def pack_pairs(pairs: Sequence[PairTokens], pad_id: int) -> PackedPairs:
    """Pack pairs, one a row."""
    width = max(packed_length(pair) for pair in pairs)
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.int64)
    positions = torch.zeros((len(pairs), width), dtype=torch.int64)
    segment = torch.full((len(pairs), width), 3, dtype=torch.int8)  # prompt 0, chosen 1, rejected 2, padding 3
    predicting = []
    for row, pair in enumerate(pairs):
        prompt, chosen, rejected = len(pair.prompt_ids), len(pair.chosen_ids) - 1, len(pair.rejected_ids) - 1
        start, end = prompt + chosen, prompt + chosen + rejected
        ids[row, :end] = torch.tensor([*pair.prompt_ids, *pair.chosen_ids[:-1], *pair.rejected_ids[:-1]])
        positions[row, :start] = torch.arange(start)
        positions[row, start:end] = torch.arange(prompt, prompt + rejected)
        segment[row, :prompt], segment[row, prompt:start], segment[row, start:end] = 0, 1, 2
        last = torch.tensor([prompt - 1])
        predicting.append((torch.arange(prompt - 1, start), torch.cat([last, torch.arange(start, end)])))
    causal = torch.ones((width, width), dtype=torch.bool).tril()
    queries, keys = segment.unsqueeze(2), segment.unsqueeze(1)
    attends = causal & ((keys == 0) | (keys == queries))
    return PackedPairs(ids, positions, attends.unsqueeze(1), predicting)


@torch.no_grad()
def packed_states(
    model: nn.Module, pairs: Sequence[PairTokens], pad_id: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Final hidden states that predict chosen ``[T_chosen, d]`` and rejected ``[T_rejected, d]`` of every pair."""
    packed = pack_pairs(pairs, pad_id)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(packed.attends.shape, dtype=dtype).masked_fill_(~packed.attends, torch.finfo(dtype).min)
    states = final_hidden(model, packed.input_ids.to(device), mask.to(device), packed.position_ids.to(device))
    return [
        (states[row][chosen.to(device)], states[row][rejected.to(device)])
        for row, (chosen, rejected) in enumerate(packed.predicting)
    ]


@torch.no_grad()
def separate_states(
    model: nn.Module, pairs: Sequence[PairTokens], pad_id: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The same from two sequences a pair."""
    prompts = [pair.prompt_ids for pair in pairs]
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    batch = {name: tensor.to(device) for name, tensor in pad_sequences(prompts * 2, responses, pad_id).items()}
    states = final_hidden(model, batch["input_ids"], batch["attention_mask"])
    rows = [row[mask] for row, mask in zip(states, batch["mask"], strict=True)]
    return list(zip(rows[: len(pairs)], rows[len(pairs) :], strict=True))


def can_pack(model: nn.Module, pad_id: int, device: torch.device, max_prompt: int, max_response: int) -> bool:
    """Whether both ways give the same states with this model, but for rounding.

    Positions by distance (ALiBi), recurrent layers and attention in windows or chunks that rows of these lengths
    outgrow do not bear packing. Configurations have many names for those, so it is tried: on the same tokens
    everywhere, the longest pair there may be among them.

    Args:
        max_prompt, max_response: tokens of the longest prompt and response.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    tokens = iter(range(1 << 20))

    def take(count: int) -> list[int]:
        return [next(tokens) * 7 % int(config.vocab_size) for _ in range(count)]

    short = [(min(p, max_prompt), min(c, max_response), min(r, max_response)) for p, c, r in _PROBE]
    for lengths in (short, [(max_prompt, max_response, max_response)]):
        probe = [
            PairTokens("", "", take(prompt), take(chosen), take(rejected), "") for prompt, chosen, rejected in lengths
        ]
        expected = separate_states(model, probe, pad_id, device)
        try:
            found = packed_states(model, probe, pad_id, device)
        except Exception:  # an architecture that takes no such mask or positions says so in ways of its own
            return False
        both = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
        tolerance = 1e-4 if both[0][1].dtype == torch.float32 else 3e-2
        scale = max(float(b.abs().max()) for _, b in both)
        if any(float((a - b).abs().max()) > tolerance * scale for a, b in both):
            return False
    return True
