"""Pairs with heads of every kind, and their scores and losses by autograd through whole-vocabulary tensors.

Not a test: shared by the tests of the output heads. Values and gradients are worked out here without the
pipeline's measures, from one-line definitions that autograd differentiates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.risk.head import Head, HiddenReference, Projection, TopKReference
from pipeline.risk.measures import Measure

METHODS = ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"]
MEASURES = [
    Measure("mean"),
    Measure("cvar", 0.3),
    Measure("erm", 2.0),
    Measure("worst_case"),
    Measure("mean_cvar", 0.2, 0.7),
    Measure("evar", 0.4),
    Measure("wang", 0.8),
    Measure("proportional_hazard", 0.6),
    Measure("vocab_quantile", 0.4),
    Measure("vocab_quantile_halves", 0.4),
]
RISK_MEASURES = [measure for measure in MEASURES if measure.is_risk_measure]
EVERYTHING = 1 << 30
"""A budget that every test fits in one block."""

by_label = {"ids": lambda measure: measure.label}

# Response positions of five pairs; the first response of the second and the whole third pair are empty.
_CHOSEN = [(2, 5), None, None, (0, 6), (3, 4)]
_REJECTED = [(1, 6), (4, 6), None, (5, 6), (2, 4)]
PAIR_WEIGHT = [1.0, 0.5, 0.0, 2.0, 0.0]


@dataclass
class Case:
    """A batch for the heads. ``hidden``, ``head.weight`` and ``head.bias`` are leaves that want gradients."""

    hidden: Tensor
    head: Head
    reference: HiddenReference
    labels: Tensor
    mask: Tensor
    weight: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.head.weight, self.head.bias) if leaf is not None]

    @property
    def owner(self) -> Tensor:
        """``[N]``, the sequence of each masked position."""
        return self.mask.nonzero()[:, 0]

    def block_bytes(self, positions: int) -> int:
        """The budget that holds so many positions."""
        wide = 8 if self.hidden.dtype == torch.float64 else 4
        return positions * 2 * wide * self.head.num_tokens

    def to(self, *where: Any) -> Case:
        """The same numbers elsewhere or in another dtype, as new leaves."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(*where).requires_grad_()

        def frozen(head: Head, move: Callable[[Tensor], Tensor]) -> Head:
            return replace(head, weight=move(head.weight), bias=None if head.bias is None else move(head.bias))

        device = leaf(self.hidden).device
        record = HiddenReference(
            self.reference.hidden.to(*where), frozen(self.reference.head, lambda tensor: tensor.to(*where))
        )
        fixed = (tensor.to(device) for tensor in (self.labels, self.mask, self.weight))
        return Case(leaf(self.hidden), frozen(self.head, leaf), record, *fixed)


def make_case(
    *,
    vocab: int = 23,
    width: int = 5,
    bias: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
    padding: int = 0,
    ref_padding: int = 0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Five pairs, T = 6. ``padding`` and ``ref_padding`` are rows of a head beyond its ``vocab_size``."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.zeros(10, 6, dtype=torch.bool)
    for row, span in enumerate(_CHOSEN + _REJECTED):
        if span is not None:
            mask[row, slice(*span)] = True

    def head(rows: int) -> Head:
        size = vocab if rows else None
        return Head(randn(vocab + rows, width), randn(vocab + rows) if bias else None, scale, softcap, size)

    policy, reference = head(padding), head(ref_padding)
    for leaf in (policy.weight, policy.bias):
        if leaf is not None:
            leaf.requires_grad_()
    return Case(
        randn(10, 6, width).requires_grad_(),
        policy,
        HiddenReference(randn(int(mask.sum()), width), reference),
        torch.randint(0, vocab, (10, 6), generator=generator),
        mask,
        torch.tensor(PAIR_WEIGHT, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
    )


def plain_log_probs(hidden: Tensor, head: Head) -> Tensor:
    """Log-probabilities ``[N, V]`` of hidden rows, in one go."""
    bias = None if head.bias is None else head.bias[: head.num_tokens]
    logits = head.scale * F.linear(hidden, head.weight[: head.num_tokens], bias)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1)


def plain_laws(case: Case) -> tuple[Tensor, Tensor]:
    """log pi_ref and log pi ``[N, V]`` at the masked positions."""
    record = case.reference
    return plain_log_probs(record.hidden, record.head), plain_log_probs(case.hidden[case.mask], case.head)


def plain_risk(measure: Measure, log_ref: Tensor, log_pi: Tensor) -> Tensor:
    """``[N]``, with a gradient, for laws without ties (float64)."""
    outside = log_ref == -torch.inf
    ratio = torch.where(outside, 0.0, log_ref - torch.where(outside, 0.0, log_pi))
    p, level = log_ref.exp(), measure.level

    def distorted(g: Callable[[Tensor], Tensor]) -> Tensor:
        values, order = ratio.sort(-1, descending=True)
        mass = F.pad(p.gather(-1, order).cumsum(-1), (1, 0))
        return (values * g(mass.clamp_max(1.0)).diff(dim=-1)).sum(-1)

    def quantile_rule(part: slice) -> Tensor:
        edge = torch.quantile(ratio[:, part], 1 - level, -1, keepdim=True)
        return (p[:, part] * ratio[:, part] * (ratio[:, part] > edge)).sum(-1)

    def entropic(t: Tensor) -> Tensor:
        return torch.logsumexp(log_ref + t * ratio, -1) / t.squeeze(-1)

    match measure.name:
        case "mean":
            return (p * ratio).sum(-1)
        case "cvar":
            return distorted(lambda mass: (mass / level).clamp_max(1.0))
        case "erm":
            return entropic(torch.full_like(p[:, :1], level))
        case "worst_case":
            return ratio.masked_fill(outside, -torch.inf).amax(-1)
        case "mean_cvar":
            tail = distorted(lambda mass: (mass / level).clamp_max(1.0))
            return (1 - measure.weight) * (p * ratio).sum(-1) + measure.weight * tail
        case "evar":
            t = _tightest(log_ref, ratio.detach(), level)
            return entropic(t) - math.log(level) / t.squeeze(-1)
        case "wang":
            return distorted(lambda mass: torch.special.ndtr(torch.special.ndtri(mass) + level))
        case "proportional_hazard":
            return distorted(lambda mass: mass**level)
        case "vocab_quantile":
            return quantile_rule(slice(None))
        case _:
            middle = p.shape[-1] // 2
            return quantile_rule(slice(None, middle)) + quantile_rule(slice(middle, None))


def _tightest(log_ref: Tensor, ratio: Tensor, level: float) -> Tensor:
    """``[N, 1]`` the t at which KL(pi_ref tilted by t L || pi_ref) is -log(level), by bisection of log t."""
    low, high = torch.full_like(ratio[:, :1], -20.0), torch.full_like(ratio[:, :1], 20.0)
    for _ in range(100):
        t = ((low + high) / 2).exp()
        tilted = (log_ref + t * ratio).log_softmax(-1)
        change = torch.where(log_ref == -torch.inf, 0.0, tilted - log_ref)
        is_short = (tilted.exp() * change).sum(-1, keepdim=True) < -math.log(level)
        low, high = torch.where(is_short, t.log(), low), torch.where(is_short, high, t.log())
    return ((low + high) / 2).exp()


def plain_sums(case: Case, measure: Measure) -> Tensor:
    """logps, ref_logps, kl and risk of every sequence, ``[4, B]``."""
    log_ref, log_pi = plain_laws(case)
    labels = case.labels[case.mask].unsqueeze(-1)
    columns = torch.stack(
        [
            log_pi.gather(-1, labels).squeeze(-1),
            log_ref.gather(-1, labels).squeeze(-1),
            plain_risk(Measure("mean"), log_ref, log_pi),
            plain_risk(measure, log_ref, log_pi),
        ]
    )
    return columns.new_zeros(4, len(case.mask)).index_add(1, case.owner, columns)


def plain_losses(sums: Tensor, method: str, beta: float, alpha: float) -> Tensor:
    """The losses of all pairs ``[P]`` from their sums, from the equations of the methods."""
    (chosen, rejected), (d_chosen, d_rejected) = (sums[0] - sums[1]).chunk(2), sums[3].chunk(2)
    u = beta * (chosen - rejected)
    delta = {
        "dpo": 0.0 * u,
        "1": beta * (d_rejected - d_chosen),
        "2": alpha * beta * (d_rejected - d_chosen.detach()),
    }
    return -F.logsigmoid(u - delta["dpo" if method == "dpo" else method[-1]])


def top_k_of(log_ref: Tensor, labels: Tensor, k: int) -> TopKReference:
    """The top-k record of whole distributions ``[N, V]`` at positions with the given labels ``[N]``."""
    log_probs, ids = log_ref.topk(k, -1)
    log_rest = log_ref.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TopKReference(ids, log_probs, log_rest, log_ref.gather(-1, labels.unsqueeze(-1)).squeeze(-1))


def assert_same(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal to ``tolerance`` relative to the largest entry of each tensor, and to one."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * (1 + other.abs().max().item()))


def count_products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows that go through each product with a head from now on, by the name of the product."""
    rows: Counter[str] = Counter()

    def counting(name: str, position: int) -> None:
        product = getattr(Projection, name)

        def counted(self: Projection, *arguments: Any) -> Any:
            rows[name] += len(arguments[position])
            return product(self, *arguments)

        monkeypatch.setattr(Projection, name, counted)

    for name, position in (("logits", 0), ("grad_rows", 0), ("add_grad_weight", 1)):
        counting(name, position)
    return rows
