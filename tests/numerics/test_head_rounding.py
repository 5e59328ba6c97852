"""The heads where numbers are hard: half precision, huge logits, one-hot references, and NaN beside the mask."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.risk.head import Head, HiddenReference, Reference
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import PairScores, pair_loss
from pipeline.risk.sequence_head import sequence_logps, sequence_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import (
    EVERYTHING,
    MEASURES,
    METHODS,
    RISK_MEASURES,
    Case,
    assert_same,
    by_label,
    make_case,
    plain_laws,
    plain_losses,
    plain_sums,
    top_k_of,
)

CVAR = Measure("cvar", 0.3)


def fused(case: Case, measure: Measure, method: str = "ra_dpo1", reference: Reference | None = None) -> PairScores:
    return pair_loss(
        case.hidden,
        case.head,
        reference or case.reference,
        case.labels,
        case.mask,
        measure,
        pair_form(method, 0.1, 0.5),
        case.weight,
        block_bytes=case.block_bytes(9),
    )


class TestHalfPrecision:
    """Sums in float32 of products of halves, whose only error is float32's: 2^-24 of logits of about 10, a few times
    over, at each of up to 6 positions of a response. Rounding the logits to bfloat16 would be off by 2^-9 of them."""

    @pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
    def test_sums_have_the_digits_of_single_precision(self, measure: Measure) -> None:
        case = make_case(dtype=torch.bfloat16, width=16)
        exact = case.to(torch.float64)
        expected = plain_sums(exact, measure)
        rounded = Head(case.head.weight.float(), case.head.bias.float())
        logits = case.hidden[case.mask].float() @ rounded.weight.T
        assert 5 < logits.abs().max() < 20
        assert (logits - logits.bfloat16().float()).abs().max() > 1e-2, "rounded logits would fail this test"
        scores = sequence_scores(
            case.hidden, case.head, case.reference, case.labels, case.mask, measure, block_bytes=EVERYTHING
        )
        for found in (scores, fused(case, measure)[2:]):
            for column, wanted in zip(found, expected, strict=True):
                assert column.dtype == torch.float32
                assert (column.double() - wanted).abs().max() < 1e-4

    @pytest.mark.parametrize("method", ["dpo", "ra_dpo1", "ra_dpo2"])
    def test_gradients_are_rounded_once(self, method: str) -> None:
        """In the leaves' dtype; bfloat16 keeps 8 bits, so each is within 2^-8 of itself, and of its rounding noise."""
        case = make_case(dtype=torch.bfloat16, width=16)
        exact = case.to(torch.float64)
        fused(case, CVAR, method).loss.backward()
        losses = plain_losses(plain_sums(exact, CVAR), method, 0.1, 0.5)
        (exact.weight * losses).sum().backward()
        for leaf, wanted in zip(case.leaves, exact.leaves, strict=True):
            assert leaf.grad.dtype == torch.bfloat16
            torch.testing.assert_close(leaf.grad.double(), wanted.grad, rtol=2**-8, atol=1e-5)

    @pytest.mark.parametrize("fuse", [True, False])
    def test_the_gradient_of_the_head_is_summed_in_single_precision(self, fuse: bool) -> None:
        """1,024 equal positions in blocks of one: in bfloat16 a sum stalls once it is 256 times its terms."""
        count, vocab, width = 1024, 7, 3
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(vocab, width, generator=generator).bfloat16().requires_grad_()
        row = torch.randn(1, 1, width, generator=generator).bfloat16()
        hidden = torch.cat([row.expand(1, count, width)] * 2)
        mask = torch.zeros(2, count, dtype=torch.bool)
        mask[0] = True
        labels = torch.full((2, count), 4)
        block_bytes = 8 * vocab
        if fuse:
            form = pair_form("dpo", 1e-6, 0.0)
            record = HiddenReference(hidden[0], Head(weight.detach()))
            found = pair_loss(
                hidden,
                Head(weight),
                record,
                labels,
                mask,
                Measure("mean"),
                form,
                torch.ones(1),
                block_bytes=block_bytes,
            ).loss / (-0.5e-6)  # dloss / dlogp at the reference
        else:
            found = sequence_logps(hidden, Head(weight), labels, mask, block_bytes=block_bytes).sum()
        (gradient,) = torch.autograd.grad(found, weight)
        wide = weight.detach().double().requires_grad_()
        one = torch.log_softmax(row[0].double() @ wide.T, -1)[0, 4]
        (term,) = torch.autograd.grad(one, wide)
        torch.testing.assert_close(gradient.double(), count * term, rtol=2**-7, atol=0)
        stalled = torch.zeros(vocab, width, dtype=torch.bfloat16)
        for _ in range(count):
            stalled += term.bfloat16()
        assert (stalled.double() / (count * term) < 0.6).all(), "this case would not show a sum in bfloat16"


class TestExtremes:
    @pytest.mark.parametrize("measure", MEASURES, **by_label)
    def test_logits_of_ten_thousand(self, measure: Measure) -> None:
        """float32 holds logits of 1e4 to 1e-3, and so the sums of a few of their differences to 1e-2."""
        case = make_case(dtype=torch.float32)
        with torch.no_grad():
            for tensor in (case.head.weight, case.reference.head.weight):
                tensor.mul_(3e3)
        exact = case.to(torch.float64)
        largest = max((-part.detach()).max().item() for part in plain_laws(exact))
        assert largest > 1e4
        found = fused(case, measure)
        expected = plain_sums(exact, Measure("mean"))  # logps, ref_logps and KL, whatever the measure
        for column, wanted in zip(found[2:5], expected, strict=False):
            torch.testing.assert_close(column.double(), wanted.detach(), rtol=1e-5, atol=2e-2)
        assert all(torch.isfinite(part).all() for part in found)
        assert all(torch.isfinite(part).all() for part in torch.autograd.grad(found.loss, case.leaves))

    @pytest.mark.parametrize("bottom", [-torch.inf, -1e30, -1e4])
    @pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
    def test_a_one_hot_reference(self, measure: Measure, bottom: float) -> None:
        """All mass on the label: every measure is -log pi(label), and pi - q its gradient, that of a likelihood."""
        case = make_case(seed=1)
        case.labels = torch.full_like(case.labels, 7)
        bias = torch.full((23,), bottom, dtype=torch.float64)
        bias[7] = 0.0
        record = HiddenReference(case.reference.hidden, Head(torch.zeros(23, 5, dtype=torch.float64), bias))
        scores = sequence_scores(
            case.hidden, case.head, record, case.labels, case.mask, measure, block_bytes=case.block_bytes(4)
        )
        assert_same([scores.risk, scores.kl, scores.ref_logps], [-scores.logps, -scores.logps, 0 * scores.logps])
        ours, theirs = (
            torch.autograd.grad(total.sum(), case.leaves, retain_graph=True) for total in (scores.risk, -scores.logps)
        )
        assert_same(ours, theirs)

    # Without the published code's halves: those of 22 and of 23 tokens differ.
    @pytest.mark.parametrize("measure", MEASURES[:-1], **by_label)
    def test_tokens_masked_in_both_biases(self, measure: Measure) -> None:
        """-inf in both biases takes tokens out of the vocabulary: as if their rows were not there."""
        case, fewer = (make_case(vocab=22, padding=1, ref_padding=1, seed=2) for _ in range(2))
        with torch.no_grad():
            case.head.bias[22] = case.reference.head.bias[22] = -torch.inf
        case.head = replace(case.head, vocab_size=None)
        case.reference = HiddenReference(case.reference.hidden, replace(case.reference.head, vocab_size=None))
        found, expected = fused(case, measure), fused(fewer, measure)
        assert_same(found, expected)
        ours, theirs = (torch.autograd.grad(one.loss, x.leaves) for one, x in ((found, case), (expected, fewer)))
        assert_same(ours, theirs)

    @pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
    def test_a_vocabulary_of_one_token(self, measure: Measure) -> None:
        """Nothing is uncertain: no risk, loss ln 2, no gradient."""
        case = make_case(vocab=1)
        found = fused(case, measure)
        assert found.losses.tolist() == [math.log(2)] * 5
        assert all((part == 0).all() for part in found[2:])
        assert all((part == 0).all() for part in torch.autograd.grad(found.loss, case.leaves))


class TestAtTheReference:
    """pi = pi_ref: the start of training."""

    @staticmethod
    def start(dtype: torch.dtype) -> Case:
        case = make_case(dtype=dtype, seed=3)
        record = HiddenReference(
            case.hidden[case.mask].detach().clone(), Head(case.head.weight.detach(), case.head.bias.detach())
        )
        case.reference = record
        return case

    @pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
    @pytest.mark.parametrize("method", METHODS)
    def test_the_loss_is_ln_2_and_the_gradient_is_that_of_dpo(self, method: str, measure: Measure) -> None:
        """Risk presses on nothing yet, because q = pi_ref = pi."""
        case = self.start(torch.float64)
        found = fused(case, measure, method)
        assert found.losses.tolist() == pytest.approx([math.log(2)] * 5, abs=1e-12)
        # Not to the last bit: on an AMD EPYC they agree in it, on an Intel Xeon they do not.
        torch.testing.assert_close(found.logps, found.ref_logps, rtol=1e-12, atol=1e-12)
        assert found.risk.abs().max() < 1e-12
        dpo = torch.autograd.grad(fused(case, measure, "dpo").loss, case.leaves)
        assert_same(torch.autograd.grad(found.loss, case.leaves), dpo, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("tier", ["hidden", "top-k"])
    def test_exactly_ln_2_for_dpo(self, dtype: torch.dtype, tier: str) -> None:
        case = self.start(dtype)
        record: Reference = case.reference
        if tier == "top-k":
            log_ref, _ = plain_laws(case.to(torch.float32))
            record = top_k_of(log_ref.detach(), case.labels[case.mask], 4)
        losses = fused(case, CVAR, "dpo", record).losses
        expected = torch.full((5,), math.log(2), dtype=torch.float32)
        if tier == "hidden":
            assert torch.equal(losses, expected)
        else:
            torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_under_the_mask_does_not_leak(bad: float, fuse: bool) -> None:
    """NaN in prompt and padding changes no bit, and gets a gradient of zero; labels there may be anything."""

    def run(case: Case) -> tuple[Tensor, ...]:
        if fuse:
            found = fused(case, CVAR)
            return *found, *torch.autograd.grad(found.loss, case.leaves)
        scores = sequence_scores(
            case.hidden, case.head, case.reference, case.labels, case.mask, CVAR, block_bytes=case.block_bytes(4)
        )
        return *scores, *torch.autograd.grad((scores.logps + scores.risk).sum(), case.leaves)

    clean, dirty = make_case(), make_case()
    with torch.no_grad():
        dirty.hidden[~dirty.mask] = bad
    dirty.labels = dirty.labels.masked_fill(~dirty.mask, -100)
    for one, other in zip(run(clean), run(dirty), strict=True):
        assert torch.equal(one, other)
    assert (run(dirty)[-3][~dirty.mask] == 0).all()
