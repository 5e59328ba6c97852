"""The fused loss of pairs against autograd through whole-vocabulary tensors, and against the generic head."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.risk.head import Head, HiddenReference, Reference, ScalarReference
from pipeline.risk.losses import pair_form, preference_loss
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import PairScores, pair_loss
from pipeline.risk.sequence_head import sequence_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import (
    EVERYTHING,
    MEASURES,
    METHODS,
    RISK_MEASURES,
    Case,
    assert_same,
    by_label,
    count_products,
    make_case,
    plain_laws,
    plain_losses,
    plain_sums,
    top_k_of,
)

CVAR = Measure("cvar", 0.3)
BETA, ALPHA = 0.7, 0.4
BLOCKS = [1, 4, 9, 1000]
"""Positions in a block: every pair split over blocks, some split, none split, all pairs in one block."""
KINDS = {
    "plain": {"bias": False},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "policy padded": {"padding": 4},
    "reference padded": {"ref_padding": 3, "bias": False},
    "all": {"scale": 1.7, "softcap": 3.0, "padding": 2, "ref_padding": 5},
}


def fused(
    case: Case,
    method: str = "ra_dpo1",
    measure: Measure = CVAR,
    positions: int | None = None,
    reference: Reference | None = None,
) -> PairScores:
    return pair_loss(
        case.hidden,
        case.head,
        case.reference if reference is None else reference,
        case.labels,
        case.mask,
        measure,
        pair_form(method, BETA, ALPHA),
        case.weight,
        block_bytes=EVERYTHING if positions is None else case.block_bytes(positions),
    )


def check(case: Case, method: str, measure: Measure, positions: int) -> None:
    found, sums = fused(case, method, measure, positions), plain_sums(case, measure)
    losses = plain_losses(sums, method, BETA, ALPHA)
    assert_same(found[1:], [losses, *sums])
    assert not any(part.requires_grad for part in found[1:] if part is not None)
    expected = (case.weight * losses).sum()
    assert_same([found.loss], [expected])
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    ours = torch.autograd.grad(found.loss, case.leaves, upstream)
    assert_same(ours, torch.autograd.grad(expected, case.leaves, upstream))
    silent = ~case.mask | (case.weight.repeat(2) == 0).unsqueeze(-1)
    assert (ours[0][silent] == 0).all(), "prompts, padding and pairs of weight zero get no gradient"
    assert all((part[case.head.num_tokens :] == 0).all() for part in ours[1:]), "nor do padded rows"


class TestAgainstAutograd:
    @pytest.mark.parametrize("measure", MEASURES, **by_label)
    @pytest.mark.parametrize("positions", BLOCKS)
    def test_every_measure(self, measure: Measure, positions: int) -> None:
        check(make_case(scale=1.7, softcap=3.0, padding=2), "ra_dpo1", measure, positions)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("positions", BLOCKS)
    @pytest.mark.parametrize("measure", [Measure("mean"), CVAR, Measure("vocab_quantile", 0.4)], **by_label)
    def test_every_method(self, method: str, positions: int, measure: Measure) -> None:
        check(make_case(seed=1), method, measure, positions)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("positions", BLOCKS)
    def test_every_kind_of_head(self, kind: str, positions: int) -> None:
        check(make_case(**KINDS[kind]), "ra_dpo2", CVAR, positions)

    def test_a_tied_head_adds_up_its_gradients(self) -> None:
        case = make_case(bias=False)
        generator = torch.Generator().manual_seed(4)
        embedding = torch.randn(23, 5, dtype=torch.float64, generator=generator, requires_grad=True)
        case.hidden, case.head = torch.tanh(embedding[case.labels]), Head(embedding)
        (ours,) = torch.autograd.grad(fused(case, positions=4).loss, embedding, retain_graph=True)
        losses = plain_losses(plain_sums(case, CVAR), "ra_dpo1", BETA, ALPHA)
        assert_same([ours], torch.autograd.grad((case.weight * losses).sum(), embedding))

    def test_a_slice_of_the_vocabulary_pass_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A block is reduced in slices; here of three positions, and of a third of one."""
        for elements in (3 * 23, 7):
            monkeypatch.setitem(sys.modules["pipeline.risk.positions"]._SLICE_ELEMENTS, "cpu", elements)
            check(make_case(softcap=3.0), "ra_dpo1", CVAR, 9)


def generic(case: Case, method: str, measure: Measure, reference: Reference) -> tuple[Tensor, Tensor]:
    """The weighted loss and the losses, from the scores of whole sequences."""
    scores = sequence_scores(
        case.hidden, case.head, reference, case.labels, case.mask, measure, block_bytes=case.block_bytes(4)
    )
    (chosen, rejected), (ref_chosen, ref_rejected) = scores.logps.chunk(2), scores.ref_logps.chunk(2)
    risk: Any = (None, None) if scores.risk is None else scores.risk.chunk(2)
    losses = preference_loss(pair_form(method, BETA, ALPHA), chosen, rejected, ref_chosen, ref_rejected, *risk).loss
    return (case.weight * losses).sum(), losses


class TestAgainstTheGenericHead:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("measure", MEASURES, **by_label)
    def test_hidden_tier(self, method: str, measure: Measure) -> None:
        case = make_case(seed=2)
        self.compare(case, method, measure, case.reference)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
    def test_top_k_tier(self, method: str, measure: Measure) -> None:
        case = make_case(seed=3)
        log_ref, _ = plain_laws(case)
        self.compare(case, method, measure, top_k_of(log_ref, case.labels[case.mask], 6))

    def test_scalar_tier(self) -> None:
        case = make_case()
        record = ScalarReference(plain_sums(case, CVAR)[1])
        self.compare(case, "dpo", CVAR, record)
        found = fused(case, "dpo", CVAR, 4, record)
        assert found.kl is None
        assert found.risk is None
        assert_same([found.losses], [fused(case, "dpo").losses])

    def compare(self, case: Case, method: str, measure: Measure, reference: Reference) -> None:
        loss, losses = generic(case, method, measure, reference)
        expected = torch.autograd.grad(loss, case.leaves)
        for positions in (1, 9):
            found = fused(case, method, measure, positions, reference)
            assert_same([found.loss, found.losses], [loss, losses])
            assert_same(torch.autograd.grad(found.loss, case.leaves), expected)


class TestProducts:
    """Four products with a head for each position, and none for what nobody asks for."""

    @pytest.mark.parametrize("method", METHODS)
    def test_four_in_all(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        count = int(case.mask.sum())
        fused(case, method, positions=9).loss.backward()
        assert rows == {"logits": 2 * count, "grad_rows": count, "add_grad_weight": count}

    def test_logits_twice_for_pairs_longer_than_a_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        count = int(case.mask.sum())
        fused(case, positions=1).loss.backward()
        assert rows == {"logits": 4 * count, "grad_rows": count, "add_grad_weight": count}

    @pytest.mark.parametrize("positions", [1, 9])
    def test_no_gradient_products_without_a_gradient(self, monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
        case = make_case()
        expected = fused(case, positions=positions)
        rows = count_products(monkeypatch)
        with torch.no_grad():
            found = fused(case, positions=positions)
        assert rows == {"logits": 2 * int(case.mask.sum())}
        assert not found.loss.requires_grad
        assert_same(found, expected, 0)

    @pytest.mark.parametrize("positions", [1, 9])
    def test_none_for_a_frozen_side(self, monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        expected = torch.autograd.grad(fused(case, positions=positions).loss, case.leaves)
        rows.clear()
        case.hidden.requires_grad_(False)
        assert_same(torch.autograd.grad(fused(case, positions=positions).loss, case.leaves[1:]), expected[1:], 0)
        assert rows["grad_rows"] == 0
        rows.clear()
        case.hidden.requires_grad_(True)
        case.head.weight.requires_grad_(False)
        case.head.bias.requires_grad_(False)
        fused(case, positions=positions).loss.backward()
        assert_same([case.hidden.grad], expected[:1], 0)
        assert rows["add_grad_weight"] == 0
        assert case.head.weight.grad is None


class TestOneDerivativeOnly:
    def test_the_second_backward_pass_is_refused(self) -> None:
        loss = fused(make_case()).loss
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="run its forward pass again"):
            loss.backward()

    def test_second_derivatives_are_refused(self) -> None:
        case = make_case()
        (first,) = torch.autograd.grad(fused(case).loss.square(), case.hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


class TestPairs:
    def test_padding_pairs_change_nothing(self) -> None:
        """Pairs of weight zero, empty or not, may be taken out."""
        case = make_case(seed=5)
        kept = torch.tensor([0, 1, 3])
        rows = torch.cat([kept, kept + 5])
        where = torch.zeros(10, dtype=torch.bool).index_fill(0, rows, True)[case.owner]
        record = HiddenReference(case.reference.hidden[where], case.reference.head)
        fewer = replace(
            case,
            hidden=case.hidden[rows],
            reference=record,
            labels=case.labels[rows],
            mask=case.mask[rows],
            weight=case.weight[kept],
        )
        for positions in (1, 4, 9):
            whole, part = fused(case, positions=positions), fused(fewer, positions=positions)
            assert_same([whole.loss, whole.losses[kept]], [part.loss, part.losses], 1e-12)
            expected = torch.autograd.grad(part.loss, case.leaves, retain_graph=True)
            assert_same(torch.autograd.grad(whole.loss, case.leaves), expected, 1e-12)

    @pytest.mark.parametrize("measure", MEASURES, **by_label)
    def test_padding_alone(self, measure: Measure) -> None:
        case = make_case()
        case.mask, case.weight = torch.zeros_like(case.mask), torch.zeros_like(case.weight)
        record = HiddenReference(case.reference.hidden[:0], case.reference.head)
        found = fused(case, measure=measure, reference=record)
        found.loss.backward()
        assert found.loss.item() == 0.0
        assert found.losses.tolist() == pytest.approx([math.log(2)] * 5)
        assert all((leaf.grad == 0).all() for leaf in case.leaves)

    def test_no_pairs_at_all(self) -> None:
        case = make_case()
        record = HiddenReference(case.reference.hidden[:0], case.reference.head)
        none = replace(
            case,
            hidden=case.hidden[:0],
            reference=record,
            labels=case.labels[:0],
            mask=case.mask[:0],
            weight=case.weight[:0],
        )
        found = fused(none)
        assert found.loss.item() == 0.0
        assert found.logps.shape == (0,)

    def test_the_order_of_pairs_is_the_order_of_the_results(self) -> None:
        case, order = make_case(seed=6), torch.tensor([3, 0, 4, 2, 1])
        rows = torch.cat([order, order + 5])
        record = torch.zeros(10, 6, 5, dtype=torch.float64).masked_scatter(
            case.mask.unsqueeze(-1), case.reference.hidden
        )
        moved = replace(
            case,
            hidden=case.hidden[rows],
            labels=case.labels[rows],
            mask=case.mask[rows],
            weight=case.weight[order],
            reference=HiddenReference(record[rows][case.mask[rows]], case.reference.head),
        )
        for positions in (1, 4, 9):
            found, expected = fused(moved, positions=positions), fused(case, positions=positions)
            assert_same([found.loss, found.losses], [expected.loss, expected.losses[order]], 1e-12)
            assert_same(found[2:], [part[rows] for part in expected[2:] if part is not None], 1e-12)
