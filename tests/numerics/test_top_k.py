"""The top-k tier: a lower bound of the hidden tier, equal to it at k = V, with the gradient of the grouped law.

Logits are the hidden states themselves here (the head's matrix is the identity), so that the gradient of a hidden
state is that of its position's logits.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import RiskError
from pipeline.risk.block import NO_TOKEN
from pipeline.risk.head import Head, HiddenReference, Reference, TopKReference
from pipeline.risk.measures import Measure
from pipeline.risk.sequence_head import SequenceScores, sequence_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import RISK_MEASURES, assert_same, by_label, plain_risk, top_k_of

N = 6


class Logits:
    """N sequences of one position, given by the logits of both models."""

    def __init__(self, seed: int, vocab: int, spread: float = 1.0, peak: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def randn() -> Tensor:
            return torch.randn(N, vocab, generator=generator, dtype=torch.float64)

        self.ref = peak * randn()
        self.policy = (self.ref + spread * randn()).requires_grad_()
        self.labels = torch.randint(0, vocab, (N,), generator=generator)
        self.head = Head(torch.eye(vocab, dtype=torch.float64))
        self.hidden_tier = HiddenReference(self.ref, self.head)

    @property
    def log_ref(self) -> Tensor:
        return self.ref.log_softmax(-1)

    def top_k(self, k: int) -> TopKReference:
        return top_k_of(self.log_ref, self.labels, k)

    def scores(self, reference: Reference, measure: Measure, positions: int = 4) -> SequenceScores:
        mask = torch.ones(N, 1, dtype=torch.bool)
        hidden, labels = self.policy.unsqueeze(1), self.labels.unsqueeze(1)
        block_bytes = positions * 16 * self.ref.shape[-1]
        return sequence_scores(hidden, self.head, reference, labels, mask, measure, block_bytes=block_bytes)

    def grouped(self, record: TopKReference) -> tuple[Tensor, Tensor]:
        """log pi_ref and log pi over the k tokens and one symbol for the rest ``[N, k + 1]``."""
        log_pi = self.policy.log_softmax(-1)
        rest = log_pi.scatter(-1, record.ids, -torch.inf).logsumexp(-1, keepdim=True)
        log_ref = torch.cat([record.log_probs, record.log_rest.unsqueeze(-1)], -1)
        return log_ref, torch.cat([log_pi.gather(-1, record.ids), rest], -1)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 60),
    share=st.floats(0, 1),
    spread=st.floats(1e-2, 5),
    peak=st.floats(0, 6),
)
def test_a_lower_bound(measure: Measure, seed: int, vocab: int, share: float, spread: float, peak: float) -> None:
    x = Logits(seed, vocab, spread, peak)
    whole = x.scores(x.hidden_tier, measure)
    found = x.scores(x.top_k(max(1, round(share * vocab))), measure)
    assert (found.risk <= whole.risk + 1e-8 * (1 + whole.risk.abs())).all()
    assert (found.kl <= whole.kl + 1e-9).all()
    assert (found.kl >= -1e-9).all(), "the grouped law has a divergence too"
    assert_same([found.logps, found.ref_logps], [whole.logps, whole.ref_logps])


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_more_tokens_never_loosen_the_bound(measure: Measure) -> None:
    x = Logits(0, 31, spread=2.0)
    found = torch.stack([x.scores(x.top_k(k), measure).risk.detach() for k in range(1, 32)])
    assert (found.diff(dim=0) >= -1e-9).all()
    assert (found[-1] > found[0] + 1e-3).all(), "a bound that is never loose would be no bound of a grouped law"


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_the_whole_vocabulary_is_the_hidden_tier(measure: Measure) -> None:
    """At k = V nothing is left: the rest has no mass, and values and gradients are the hidden tier's."""
    x = Logits(1, 17)
    record = x.top_k(17)
    assert torch.isneginf(record.log_rest).all()
    found, whole = x.scores(record, measure), x.scores(x.hidden_tier, measure)
    assert_same(found, whole, 1e-12)
    ours, theirs = (torch.autograd.grad(one.risk.sum() + one.kl.sum(), x.policy)[0] for one in (found, whole))
    assert_same([ours], [theirs], 1e-12)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
@pytest.mark.parametrize("k", [1, 5, 16, 17])
@pytest.mark.parametrize("positions", [1, 4])
def test_the_gradient_is_that_of_the_grouped_law(measure: Measure, k: int, positions: int) -> None:
    x = Logits(2, 17)
    record = x.top_k(k)
    found = x.scores(record, measure, positions)
    log_ref, log_pi = x.grouped(record)
    risk = plain_risk(measure, log_ref, log_pi)
    logps = x.policy.log_softmax(-1).gather(-1, x.labels.unsqueeze(-1)).squeeze(-1)
    assert_same([found.risk, found.logps], [risk, logps])
    upstream = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)
    ours = torch.autograd.grad((upstream * found.risk + found.logps + 0.3 * found.kl).sum(), x.policy)
    kl = plain_risk(Measure("mean"), log_ref, log_pi)
    theirs = torch.autograd.grad((upstream * risk + logps + 0.3 * kl).sum(), x.policy)
    assert_same(ours, theirs)
    assert ours[0].sum(-1).abs().max() < 1e-12, "adding a number to all logits changes nothing"


def test_labels_outside_the_top_k() -> None:
    """Their log-probability under the policy is that of the whole vocabulary, and so is its gradient."""
    x = Logits(3, 19)
    x.labels = x.log_ref.argmin(-1)
    record = x.top_k(4)
    assert not (record.ids == x.labels.unsqueeze(-1)).any()
    found, whole = (x.scores(one, Measure("mean")) for one in (record, x.hidden_tier))
    assert_same([found.logps, found.ref_logps], [whole.logps, whole.ref_logps], 1e-12)
    ours, theirs = (torch.autograd.grad(one.logps.sum(), x.policy) for one in (found, whole))
    assert_same(ours, theirs, 1e-12)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_a_rest_without_mass_weighs_nothing(measure: Measure) -> None:
    """A reference whose top-k holds all its mass (log_rest = -inf): what the policy gives the rest costs through
    the normalisation alone, as with a reference whose other entries are masked."""
    x = Logits(4, 13)
    masked = x.ref.masked_fill(x.ref < x.ref.topk(5, -1).values[:, -1:], -torch.inf)
    x.labels = x.ref.argmax(-1)
    x.ref = masked
    record = x.top_k(5)
    assert torch.isneginf(record.log_rest).all()
    found = x.scores(record, measure)
    risk = plain_risk(measure, x.log_ref, x.policy.log_softmax(-1))
    assert_same([found.risk], [risk])
    ours, theirs = (torch.autograd.grad(one.sum(), x.policy) for one in (found.risk, risk))
    assert_same(ours, theirs)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_a_rest_that_both_models_mask(measure: Measure) -> None:
    """As if the vocabulary ended with the top-k; the masked logits get no gradient."""
    x, fewer = Logits(7, 9), Logits(7, 9)
    x.labels = x.labels.clamp_max(4)
    fewer.ref, fewer.labels = x.ref[:, :5], x.labels
    fewer.policy = x.policy[:, :5].detach().requires_grad_()
    fewer.head = Head(torch.eye(5, dtype=torch.float64))
    x.ref[:, 5:] = -torch.inf
    bias = torch.zeros(9, dtype=torch.float64)
    bias[5:] = -torch.inf
    x.head = Head(x.head.weight, bias)
    found, expected = x.scores(x.top_k(5), measure), fewer.scores(fewer.top_k(5), measure)
    assert_same(found, expected, 1e-12)
    (ours,), (theirs,) = (
        torch.autograd.grad(one.risk.sum() + one.logps.sum(), model.policy)
        for one, model in ((found, x), (expected, fewer))
    )
    assert_same([ours[:, :5]], [theirs], 1e-12)
    assert (ours[:, 5:] == 0).all()


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_at_the_reference_the_risk_presses_on_nothing(measure: Measure) -> None:
    """pi = pi_ref: all of L is 0 and tied, q is the grouped pi_ref, and the gradient vanishes."""
    x = Logits(5, 23)
    x.policy = x.ref.clone().requires_grad_()
    for k in (1, 7, 23):
        found = x.scores(x.top_k(k), measure)
        assert found.risk.abs().max() < 1e-12
        (gradient,) = torch.autograd.grad(found.risk.sum(), x.policy)
        assert gradient.abs().max() < 1e-12


def test_single_precision_and_narrow_ids() -> None:
    """A record as it is stored, float32 and int32, serves float64 and float32 policies."""
    x = Logits(6, 29)
    record = x.top_k(8)
    stored = TopKReference(
        record.ids.int(), record.log_probs.float(), record.log_rest.float(), record.label_logps.float()
    )
    expected = x.scores(record, Measure("cvar", 0.3))
    assert_same(x.scores(stored, Measure("cvar", 0.3)), expected, 1e-6)
    x.policy = x.policy.detach().float().requires_grad_()
    x.head = replace(x.head, weight=x.head.weight.float())
    found = x.scores(stored, Measure("cvar", 0.3))
    assert found.risk.dtype == torch.float32
    assert_same([column.double() for column in found], expected, 1e-5)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_positions_may_keep_different_numbers_of_tokens(measure: Measure) -> None:
    """Each is scored as it would be in a record of its own size, gradient included."""
    x = Logits(4, 17)
    sizes = [1, 17, 3, 8, 1, 5]
    records = [x.top_k(size) for size in sizes]
    ids = torch.full((N, 17), NO_TOKEN)
    log_probs = torch.full((N, 17), -torch.inf, dtype=torch.float64)
    for row, (size, record) in enumerate(zip(sizes, records, strict=True)):
        ids[row, :size], log_probs[row, :size] = record.ids[row], record.log_probs[row]
    log_rest = torch.stack([record.log_rest[row] for row, record in enumerate(records)])
    together = TopKReference(ids, log_probs, log_rest, records[0].label_logps)
    found = x.scores(together, measure)
    ours = torch.autograd.grad((found.risk + 0.3 * found.kl + found.logps).sum(), x.policy)[0]
    for row, record in enumerate(records):
        alone = x.scores(record, measure)
        theirs = torch.autograd.grad((alone.risk + 0.3 * alone.kl + alone.logps)[row], x.policy)[0]
        assert_same([column[row] for column in found], [column[row] for column in alone], 1e-12)
        assert_same([ours[row]], [theirs[row]], 1e-12)


def test_a_missing_token_needs_a_masked_probability_and_a_first_one() -> None:
    x = Logits(5, 9)
    record = x.top_k(3)
    ids = record.ids.clone()
    ids[2, 1] = NO_TOKEN
    with pytest.raises(RiskError, match="holds the token -1"):
        x.scores(replace(record, ids=ids), Measure("mean"))
    ids[2] = NO_TOKEN
    empty = record.log_probs.clone()
    empty[2] = -torch.inf
    with pytest.raises(RiskError, match="holds the token -1"):
        x.scores(replace(record, ids=ids, log_probs=empty), Measure("mean"))
