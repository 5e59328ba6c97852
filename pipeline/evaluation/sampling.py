"""Sampling outputs from one model, with noise that belongs to a prompt and a seed.

A sample is argmax(logits / temperature + Gumbel noise), which is an exact draw from the softmax. The noise of
(prompt, seed) is the same for every model and every batch, so that reference and policy are compared on
common random numbers and a sample does not depend on its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from pipeline.config import EvaluationConfig
from pipeline.records import PromptTokens, SampleRow


class SeededGumbel(LogitsProcessor):
    """Adds each row's own noise, step by step; use with greedy decoding."""

    def __init__(self, row_seeds: Sequence[int], temperature: float) -> None:
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in row_seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self._generators])
        return scores.float() / self._temperature + torch.from_numpy(noise).to(scores.device, torch.float32)


def row_seed(prompt_id: str, seed: int) -> int:
    """Seed of one sample's noise, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{prompt_id}:{seed}".encode()).digest()[:16], "big")


@torch.no_grad()
def sample_batch(
    model: nn.Module,
    tokenizer: Any,
    batch: Sequence[tuple[PromptTokens, int]],
    config: EvaluationConfig,
    device: torch.device,
) -> list[SampleRow]:
    """One sample for every (prompt, seed), without scores."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(len(prompt.prompt_ids) for prompt, _ in batch)
    # Padded on the left, so that every row's next token is at the same position.
    ids = torch.full((len(batch), width), pad_id)
    attention = torch.zeros((len(batch), width), dtype=torch.int64)
    for row, (prompt, _) in enumerate(batch):
        ids[row, width - len(prompt.prompt_ids) :] = torch.tensor(prompt.prompt_ids)
        attention[row, width - len(prompt.prompt_ids) :] = 1
    noise = SeededGumbel([row_seed(prompt.prompt_id, seed) for prompt, seed in batch], config.temperature)
    # What a model's directory says about generating (penalties, suppressed tokens) would change the distribution, and
    # differently so for a policy saved without it.
    model.generation_config = GenerationConfig()
    output = model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        logits_processor=[noise],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_id,
        use_cache=True,
    )
    rows = []
    for (prompt, seed), full in zip(batch, output[:, width:].tolist(), strict=True):
        finished = tokenizer.eos_token_id in full
        response = full[: full.index(tokenizer.eos_token_id) + 1] if finished else full
        text = tokenizer.decode(response, skip_special_tokens=True)
        rows.append(SampleRow(prompt.prompt_id, seed, prompt.prompt, text, prompt.prompt_ids, response, finished, {}))
    return rows


def prompt_set_digest(prompt_ids: Sequence[str]) -> str:
    """sha256 over the ids of a set of prompts, in their order."""
    return hashlib.sha256("\n".join(prompt_ids).encode()).hexdigest()
