"""Scores of sequences against autograd through whole-vocabulary tensors in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.risk.head import Head, ScalarReference, positions_per_block
from pipeline.risk.measures import Measure
from pipeline.risk.sequence_head import SequenceScores, sequence_logps, sequence_scores, token_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import (
    EVERYTHING,
    MEASURES,
    Case,
    assert_same,
    by_label,
    count_products,
    make_case,
    plain_log_probs,
    plain_risk,
    plain_sums,
)

CVAR = Measure("cvar", 0.3)
KINDS = {
    "plain": {"bias": False},
    "bias": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "policy padded": {"padding": 4},
    "reference padded": {"ref_padding": 3, "bias": False},
    "all": {"scale": 1.7, "softcap": 3.0, "padding": 2, "ref_padding": 5},
}


def scores_of(case: Case, measure: Measure = CVAR, block_bytes: int = EVERYTHING) -> SequenceScores:
    return sequence_scores(
        case.hidden, case.head, case.reference, case.labels, case.mask, measure, block_bytes=block_bytes
    )


def check(case: Case, measure: Measure, block_bytes: int) -> None:
    """Sums and, for an arbitrary upstream gradient, all gradients."""
    found, expected = scores_of(case, measure, block_bytes), plain_sums(case, measure)
    assert_same(found, expected)
    upstream = torch.randn(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream[1] = 0  # the reference has no gradient
    ours = torch.autograd.grad(
        (upstream[0] * found.logps + upstream[2] * found.kl + upstream[3] * found.risk).sum(), case.leaves
    )
    assert_same(ours, torch.autograd.grad((upstream * expected).sum(), case.leaves))
    assert (ours[0][~case.mask] == 0).all(), "prompt and padding get no gradient"
    assert all((part[case.head.num_tokens :] == 0).all() for part in ours[1:]), "nor do padded rows"


@pytest.mark.parametrize("measure", MEASURES, **by_label)
@pytest.mark.parametrize("positions", [1, 4, 1000])
def test_every_measure(measure: Measure, positions: int) -> None:
    case = make_case(scale=1.7, softcap=3.0, padding=2)
    block_bytes = case.block_bytes(positions)
    assert positions_per_block(block_bytes, 23, torch.float64) == positions
    check(case, measure, block_bytes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [1, 4, 1000])
def test_every_kind_of_head(kind: str, positions: int) -> None:
    case = make_case(**KINDS[kind])
    check(case, CVAR, case.block_bytes(positions))


def test_a_tied_head_adds_up_its_gradients() -> None:
    """The embedding used as head gets the gradient of both uses."""
    case = make_case(bias=False)
    embedding = torch.randn(23, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    case.hidden, case.head = torch.tanh(embedding[case.labels]), Head(embedding)
    found = scores_of(case, block_bytes=case.block_bytes(3))
    (ours,) = torch.autograd.grad((found.logps + found.risk).sum(), embedding, retain_graph=True)
    sums = plain_sums(case, CVAR)
    (theirs,) = torch.autograd.grad((sums[0] + sums[3]).sum(), embedding)
    assert_same([ours], [theirs])


def test_gradcheck_of_log_probabilities() -> None:
    case = make_case(softcap=2.0, padding=1)

    def logps(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        head = Head(weight, bias, softcap=2.0, vocab_size=23)
        return sequence_logps(hidden, head, case.labels, case.mask, block_bytes=1)

    assert torch.autograd.gradcheck(logps, tuple(case.leaves))


def test_log_probabilities_alone() -> None:
    case = make_case(padding=2)
    found = sequence_logps(case.hidden, case.head, case.labels, case.mask, block_bytes=case.block_bytes(4))
    expected = plain_sums(case, CVAR)[0]
    assert_same([found], [expected])
    assert_same(torch.autograd.grad(found.sum(), case.leaves), torch.autograd.grad(expected.sum(), case.leaves))
    nothing = torch.zeros_like(case.mask)
    assert (sequence_logps(case.hidden, case.head, case.labels, nothing, block_bytes=1) == 0).all()


def test_a_scalar_record_needs_no_head() -> None:
    case = make_case()
    record = ScalarReference(torch.randn(10, dtype=torch.float64))
    found = sequence_scores(
        case.hidden, case.head, record, case.labels, case.mask, CVAR, block_bytes=case.block_bytes(4)
    )
    assert found.kl is None
    assert found.risk is None
    assert torch.equal(found.ref_logps, record.logps)
    assert_same([found.logps], [plain_sums(case, CVAR)[0]])


@pytest.mark.parametrize("positions", [1, 4, 1000])
def test_scores_of_tokens(positions: int) -> None:
    case = make_case(scale=1.7, softcap=3.0, padding=2, ref_padding=1)
    found = token_scores(
        case.hidden,
        case.head,
        case.reference,
        case.labels,
        case.mask,
        tuple(MEASURES),
        block_bytes=case.block_bytes(positions),
    )
    log_pi = plain_log_probs(case.hidden[case.mask], case.head).detach()
    log_ref = plain_log_probs(case.reference.hidden, case.reference.head)
    labels = case.labels[case.mask].unsqueeze(-1)
    assert_same([found.logps, found.ref_logps], [part.gather(-1, labels)[:, 0] for part in (log_pi, log_ref)])
    assert list(found.risk) == [measure.label for measure in MEASURES]
    assert_same(found.risk.values(), [plain_risk(measure, log_ref, log_pi) for measure in MEASURES])


class TestProducts:
    """What is computed, and what is not when nobody asks for it."""

    def test_six_with_every_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        count = int(case.mask.sum())
        found = scores_of(case, block_bytes=case.block_bytes(4))
        assert rows == {"logits": 2 * count}
        (found.logps + found.risk).sum().backward()
        assert rows == {"logits": 4 * count, "grad_rows": count, "add_grad_weight": count}

    def test_no_reference_behind_log_probabilities(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        count = int(case.mask.sum())
        scores_of(case).logps.sum().backward()
        assert rows == {"logits": 3 * count, "grad_rows": count, "add_grad_weight": count}

    def test_none_for_a_frozen_side(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case, rows = make_case(), count_products(monkeypatch)
        expected = torch.autograd.grad(scores_of(case).risk.sum(), case.leaves)
        rows.clear()
        case.hidden.requires_grad_(False)
        assert_same(torch.autograd.grad(scores_of(case).risk.sum(), case.leaves[1:]), expected[1:], 0)
        assert rows["grad_rows"] == 0
        rows.clear()
        case.hidden.requires_grad_(True)
        case.head.weight.requires_grad_(False)
        case.head.bias.requires_grad_(False)
        assert_same(torch.autograd.grad(scores_of(case).risk.sum(), case.hidden), expected[:1], 0)
        assert rows["add_grad_weight"] == 0
        assert case.head.weight.grad is None

    def test_a_graph_that_is_kept_gives_the_same_again(self) -> None:
        case = make_case()
        risk = scores_of(case, block_bytes=case.block_bytes(4)).risk.sum()
        first = torch.autograd.grad(risk, case.leaves, retain_graph=True)
        assert_same(torch.autograd.grad(risk, case.leaves), first, 0)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(risk, case.leaves)

    def test_second_derivatives_are_refused(self) -> None:
        case = make_case()
        risk = scores_of(case).risk.square().sum()
        (first,) = torch.autograd.grad(risk, case.hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
