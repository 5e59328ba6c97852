"""No tensor grows with positions times vocabulary: blocks have the size of the budget, slices that of the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.risk.head import Head, HiddenReference, positions_per_block
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import pair_loss
from pipeline.risk.sequence_head import sequence_logps, sequence_scores, token_scores

VOCAB, WIDTH, POSITIONS = 512, 3, 6


class Allocations(TorchDispatchMode):
    """Sizes of the memory behind every result, in rows of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[float] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.rows.add(leaf.untyped_storage().nbytes() / (4 * VOCAB))
        return result


def run_pairs(hidden: Tensor, head: Head, record: HiddenReference, labels: Tensor, mask: Tensor, budget: int) -> None:
    form, weight = pair_form("ra_dpo2", 0.1, 0.5), torch.ones(len(hidden) // 2)
    pair_loss(
        hidden, head, record, labels, mask, Measure("cvar", 0.3), form, weight, block_bytes=budget
    ).loss.backward()


def run_sequences(
    hidden: Tensor, head: Head, record: HiddenReference, labels: Tensor, mask: Tensor, budget: int
) -> None:
    scores = sequence_scores(hidden, head, record, labels, mask, Measure("erm", 1.0), block_bytes=budget)
    (scores.logps + scores.risk + scores.kl).sum().backward()


def run_tokens(hidden: Tensor, head: Head, record: HiddenReference, labels: Tensor, mask: Tensor, budget: int) -> None:
    token_scores(hidden, head, record, labels, mask, (Measure("evar", 0.5), Measure("wang", 1.0)), block_bytes=budget)


def run_logps(hidden: Tensor, head: Head, record: HiddenReference, labels: Tensor, mask: Tensor, budget: int) -> None:
    sequence_logps(hidden, head, labels, mask, block_bytes=budget).sum().backward()


def largest(run: Callable[..., None], length: int) -> float:
    """Rows of logits in the largest memory behind any result, for 8 sequences of so many positions."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(8, length, dtype=torch.bool)
    arguments = (
        torch.randn(8, length, WIDTH, generator=generator, requires_grad=True),
        Head(torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)),
        HiddenReference(
            torch.randn(8 * length, WIDTH, generator=generator), Head(torch.randn(VOCAB, WIDTH, generator=generator))
        ),
        torch.randint(0, VOCAB, (8, length), generator=generator),
        mask,
        POSITIONS * 2 * 4 * VOCAB,
    )
    with Allocations() as seen:
        run(*arguments)
    return max(seen.rows)


@pytest.fixture
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["pipeline.risk.positions"]._SLICE_ELEMENTS, "cpu", 2 * VOCAB)


@pytest.mark.parametrize(
    ("run", "rows"), [(run_pairs, POSITIONS * 3 // 2), (run_sequences, POSITIONS), (run_logps, POSITIONS)]
)
@pytest.mark.parametrize("length", [2, 40], ids=["pairs fit a block", "pairs are longer"])
@pytest.mark.usefixtures("_small_slices")
def test_no_memory_beyond_a_block(run: Callable[..., None], rows: int, length: int) -> None:
    """Two positions in each of 8 sequences or 40: the largest memory is the block of logits, 6 rows, all the same
    (pairs: 9, for the policy has three quarters of the budget for both logits).

    (The gradient of the head has WIDTH rows, and that of 8 x 40 hidden states less than two.)"""
    assert largest(run, length) == rows


@pytest.mark.parametrize("length", [2, 40])
def test_no_memory_beyond_two_blocks_for_scores_of_tokens(length: int) -> None:
    """A slice holds these blocks whole, and sorted measures are worked out in float64: twice the bytes."""
    assert largest(run_tokens, length) <= 2 * (POSITIONS + 1)


@given(
    budget=st.integers(1, 2**34),
    vocab=st.integers(1, 300_000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_positions_of_a_block_keep_to_the_budget(budget: int, vocab: int, dtype: torch.dtype) -> None:
    """Logits of policy and reference, in float64 for float64 and in float32 for all else; one position at least."""
    one = 2 * vocab * (8 if dtype == torch.float64 else 4)
    found = positions_per_block(budget, vocab, dtype)
    assert found >= 1
    assert found * one <= budget or found == 1
    assert (found + 1) * one > budget
