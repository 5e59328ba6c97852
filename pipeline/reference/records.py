"""What each tier keeps of a position, from its hidden state: the reference's logits, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.risk.head import Head, Projection, positions_per_block

BLOCK_BYTES = 64 * 2**20
"""Memory for one block of logits. A constant, for it decides how products are cut and so their last digits."""


class TopK(NamedTuple):
    """The likeliest tokens of N positions, M of them together; ``counts`` says how many each position has."""

    counts: Tensor
    """``[N]`` int32."""
    ids: Tensor
    """``[M]`` int32, the likeliest first."""
    log_probs: Tensor
    """``[M]`` float32, nats."""
    log_rest: Tensor
    """``[N]`` float32: log of the mass outside; -inf when there is none."""


def label_logps(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Log-probability of the labels ``[N]`` at the hidden states ``[N, d]``: float32 ``[N]``, nats."""
    return torch.cat([log_ref.gather(-1, label).squeeze(-1) for log_ref, label in _blocks(hidden, head, labels)])


def top_k(hidden: Tensor, head: Head, labels: Tensor, k: int, mass: float | None) -> tuple[Tensor, TopK]:
    """Labels' log-probabilities and the k likeliest tokens, or as many of them as it takes to hold ``mass``."""
    logps, counts, ids, log_probs, log_rest = [], [], [], [], []
    for log_ref, label in _blocks(hidden, head, labels):
        logps.append(log_ref.gather(-1, label).squeeze(-1))
        best, tokens = log_ref.topk(min(k, log_ref.shape[1]), -1)
        before = best.exp().cumsum(-1).roll(1, -1)
        before[:, 0] = 0.0
        kept = before < (2.0 if mass is None else mass)
        kept &= best > -torch.inf  # what the model masks is in no support
        log_ref.scatter_(-1, tokens, best.masked_fill(kept, -torch.inf))
        log_rest.append(log_ref.logsumexp(-1))
        counts.append(kept.sum(-1, dtype=torch.int32))
        ids.append(tokens[kept].to(torch.int32))
        log_probs.append(best[kept])
    return torch.cat(logps), TopK(torch.cat(counts), torch.cat(ids), torch.cat(log_probs), torch.cat(log_rest))


def _blocks(hidden: Tensor, head: Head, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (log pi_ref ``[n, V]``, to be used up before the next; labels ``[n, 1]``)."""
    size = 2 * positions_per_block(BLOCK_BYTES, head.num_tokens)
    projection = Projection(head, min(size, len(hidden)))
    for start in range(0, len(hidden), size):
        block = slice(start, start + size)
        yield projection.logits(hidden[block]).log_softmax(-1), labels[block].unsqueeze(-1)
