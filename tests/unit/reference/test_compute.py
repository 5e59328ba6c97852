from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import ReferenceConfig
from pipeline.errors import ModelError
from pipeline.models.load import output_head
from pipeline.models.packing import separate_states
from pipeline.records import PairTokens
from pipeline.reference.compute import reference_rows
from pipeline.reference.layout import ShardRow

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import CPU, random_pairs


def compute(model: nn.Module, pairs: list[PairTokens], packed: bool = True, **options: Any) -> list[ShardRow]:
    config = ReferenceConfig(**({"batch_tokens": 64} | options))
    return reference_rows(model, pairs, config, pad_id=0, device=CPU, packed=packed)[0]


def log_probs(model: nn.Module, pair: PairTokens, ids: list[int]) -> torch.Tensor:
    """log pi_ref ``[T, V]`` of a response, one sequence at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([[*pair.prompt_ids, *ids]])).logits
    return logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("packed", [True, False])
def test_hidden_states_are_those_of_one_sequence_at_a_time(make_model: Callable[..., nn.Module], packed: bool) -> None:
    model, pairs = make_model(), random_pairs(7)
    for pair, row in zip(pairs, compute(model, pairs, packed), strict=True):
        assert (row.row_id, row.content) == (pair.row_id, pair.content)
        both = zip((pair.chosen_ids, pair.rejected_ids), row.logps, row.tensors["hidden"], strict=True)
        for ids, logp, hidden in both:
            expected = log_probs(model, pair, ids)
            total = expected.gather(-1, torch.tensor(ids).unsqueeze(-1)).sum()
            assert logp == pytest.approx(total.item(), rel=1e-5, abs=1e-4)
            assert hidden.shape == (len(ids), 16)
            rebuilt = nn.functional.linear(hidden, output_head(model).weight).log_softmax(-1)
            torch.testing.assert_close(rebuilt, expected, rtol=1e-4, atol=1e-4)


def test_top_k_holds_the_likeliest_and_the_rest(make_model: Callable[..., nn.Module]) -> None:
    model, pairs = make_model(), random_pairs(5)
    for pair, row in zip(pairs, compute(model, pairs, tier="topk", top_k=7), strict=True):
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            expected = log_probs(model, pair, ids)
            best = expected.topk(7, -1)
            part = {name: tensors[side] for name, tensors in row.tensors.items()}
            assert part["counts"].tolist() == [7] * len(ids)
            found = part["log_probs"].view(-1, 7)
            torch.testing.assert_close(found, best.values, rtol=1e-4, atol=1e-4)
            at_ids = expected.gather(-1, part["ids"].view(-1, 7).long())
            torch.testing.assert_close(at_ids, best.values, rtol=1e-4, atol=1e-4)
            together = torch.cat([found, part["log_rest"].unsqueeze(-1)], -1).logsumexp(-1)
            torch.testing.assert_close(together, torch.zeros(len(ids)), rtol=0, atol=1e-5)
            labels = expected.gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(part["label_logps"], labels, rtol=1e-4, atol=1e-4)


def test_a_mass_keeps_as_few_tokens_as_hold_it(make_model: Callable[..., nn.Module]) -> None:
    model, pairs = make_model(), random_pairs(5)
    lengths = set()
    for row in compute(model, pairs, tier="topk", top_k=20, top_mass=0.6):
        for counts, flat in zip(row.tensors["counts"], row.tensors["log_probs"], strict=True):
            for kept in flat.exp().split(counts.tolist()):
                assert len(kept) == 20 or kept.sum() >= 0.6
                assert kept[:-1].sum() < 0.6
                lengths.add(len(kept))
    assert len(lengths) > 3
    assert max(lengths) <= 20


def test_the_whole_vocabulary_leaves_no_rest(make_model: Callable[..., nn.Module]) -> None:
    [row] = compute(make_model(), random_pairs(1), tier="topk", top_k=1000)
    assert set(row.tensors["counts"][0].tolist()) == {40}
    assert torch.isneginf(row.tensors["log_rest"][0]).all()


def test_every_tier_has_the_same_log_probabilities(make_model: Callable[..., nn.Module]) -> None:
    model, pairs = make_model(), random_pairs(5)
    scalar = compute(model, pairs, tier="scalar")
    assert all(not row.tensors for row in scalar)
    for options in ({}, {"hidden_rows": "8bit"}, {"tier": "topk"}):
        assert [row.logps for row in compute(model, pairs, **options)] == [row.logps for row in scalar]


def test_computing_again_gives_the_same_bits(make_model: Callable[..., nn.Module]) -> None:
    model, pairs = make_model(), random_pairs(9)
    for one, other in zip(compute(model, pairs), compute(model, pairs), strict=True):
        assert one.logps == other.logps
        both = zip(one.tensors["hidden"], other.tensors["hidden"], strict=True)
        assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_the_size_of_batches_changes_rounding_only(make_model: Callable[..., nn.Module], batch_tokens: int) -> None:
    model, pairs = make_model(), random_pairs(9)
    expected = torch.tensor([row.logps for row in compute(model, pairs)])
    found = torch.tensor([row.logps for row in compute(model, pairs, batch_tokens=batch_tokens)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_half_precision_rows_are_what_the_model_computed(make_model: Callable[..., nn.Module]) -> None:
    from pipeline.models.packing import packed_states

    model, pairs = make_model().to(torch.bfloat16), random_pairs(4)
    rows = compute(model, pairs, batch_tokens=1)  # a batch each, so that the same call can be made here
    for pair, row in zip(pairs, rows, strict=True):
        [states] = packed_states(model, [pair], 0, CPU)
        for found, expected in zip(row.tensors["hidden"], states, strict=True):
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_probability_that_is_not_finite_is_refused(make_model: Callable[..., nn.Module], value: float) -> None:
    model = make_model()
    model.lm_head.bias = nn.Parameter(torch.zeros(40))
    with torch.no_grad():
        model.lm_head.bias[7] = value
    pairs = [PairTokens("fine", "g", [1], [2, 3], [4], "x"), PairTokens("odd", "g", [1], [2, 7], [4], "x")]
    with pytest.raises(ModelError, match=r"a response of row '(fine|odd)' the log-probability (nan|-inf)"):
        compute(model, pairs)
    if value == -float("inf"):
        compute(model, pairs[:1])
        compute(model, pairs[:1], hidden_rows="8bit")


def test_batches_of_separate_sequences_keep_to_the_budget(
    make_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.reference import compute as module

    widths = []

    def record(model: nn.Module, pairs: list[PairTokens], pad_id: int, device: torch.device) -> object:
        longest = max(len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids)) - 1 for one in pairs)
        widths.append(2 * len(pairs) * longest)
        return separate_states(model, pairs, pad_id, device)

    monkeypatch.setattr(module, "separate_states", record)
    compute(make_model(), random_pairs(30), packed=False, batch_tokens=100)
    assert len(widths) > 3
    assert max(widths) <= 100
