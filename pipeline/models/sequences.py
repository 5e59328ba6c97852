"""Padded batches of prompt + response sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_sequences(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, *, score_prompt: bool = False
) -> dict[str, Tensor]:
    """Right-padded inputs of a causal model and the positions to score.

    Returns ``input_ids``, ``attention_mask``, ``labels`` ``[B, T]`` (int64) and ``mask`` ``[B, T]`` (bool). Position
    t predicts ``labels[:, t]``, the next token; ``mask`` is true where that token belongs to the response (with
    ``score_prompt`` also to the prompt, except its first token, which nothing predicts). T is the longest
    sequence less one, for the last token is only ever a label.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    width = max(2, max(lengths))
    ids = torch.full((len(lengths), width), pad_id, dtype=torch.int64)
    scored = torch.zeros((len(lengths), width), dtype=torch.bool)
    attended = torch.zeros((len(lengths), width), dtype=torch.int64)
    for row, (prompt, response, length) in enumerate(zip(prompts, responses, lengths, strict=True)):
        ids[row, :length] = torch.tensor([*prompt, *response], dtype=torch.int64)
        scored[row, 0 if score_prompt else len(prompt) : length] = True
        attended[row, :length] = 1
    # A row that is only padding still needs one position to attend to.
    attended[:, 0] = 1
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": attended[:, :-1],
        "labels": ids[:, 1:],
        "mask": scored[:, 1:],
    }
