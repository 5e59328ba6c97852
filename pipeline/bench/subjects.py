"""The computations that are compared, each forward and backward from the same hidden states and heads.

The whole-tensor ones are written as one would write them without a fused head: every ``[positions, vocabulary]``
tensor at once, gradients by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bench.config import BenchmarkConfig
from pipeline.risk.head import Head, HiddenReference, TopKReference
from pipeline.risk.losses import pair_form, preference_loss
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import pair_loss
from pipeline.risk.sequence_head import sequence_scores

_FORM = pair_form("ra_dpo2", 0.1, 0.5)


@dataclass(frozen=True)
class Inputs:
    """A batch whose every position counts; policy a little off the reference."""

    hidden: Tensor
    """``[2P, T, d]``, requires a gradient; so does ``weight [V, d]``."""
    weight: Tensor
    ref_hidden: Tensor
    """``[N, d]``."""
    ref_weight: Tensor
    labels: Tensor
    """``[2P, T]``."""
    top_k: TopKReference

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.labels, dtype=torch.bool)


def make_inputs(config: BenchmarkConfig, vocab_size: int, device: torch.device) -> Inputs:
    """Logits of standard deviation 3 and a log-ratio of about 0.4: peaked, and near the reference, as in training."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, config.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    length = config.positions // (2 * config.pairs)
    ref_hidden = normal(config.positions, config.hidden)
    ref_weight = normal(vocab_size, config.hidden).mul_(3.0 / config.hidden**0.5)
    hidden = ref_hidden + 0.1 * normal(config.positions, config.hidden)
    weight = ref_weight.add(normal(vocab_size, config.hidden), alpha=0.3 / config.hidden**0.5)
    labels = torch.randint(0, vocab_size, (2 * config.pairs, length), generator=generator)
    moved = [part.to(device, dtype) for part in (ref_hidden, ref_weight)]
    return Inputs(
        hidden.view(2 * config.pairs, length, config.hidden).to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(),
        moved[0],
        moved[1],
        labels.to(device),
        _top_k_record(moved[0], moved[1], labels.flatten().to(device), min(config.top_k, vocab_size)),
    )


def _top_k_record(hidden: Tensor, weight: Tensor, labels: Tensor, k: int) -> TopKReference:
    ids, log_probs, log_rest, label_logps = [], [], [], []
    for start in range(0, len(hidden), 64):
        rows = slice(start, start + 64)
        log_ref = F.linear(hidden[rows], weight).float().log_softmax(-1)
        top = log_ref.topk(k, -1)
        ids.append(top.indices)
        log_probs.append(top.values)
        log_rest.append(log_ref.scatter(-1, top.indices, -torch.inf).logsumexp(-1))
        label_logps.append(log_ref.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1))
    return TopKReference(torch.cat(ids), torch.cat(log_probs), torch.cat(log_rest), torch.cat(label_logps))


Subject = Callable[[Inputs], Tensor]
"""Gives the loss, without having differentiated it."""


def subjects(config: BenchmarkConfig) -> dict[str, Subject]:
    """All subjects by name, the baseline first."""
    cvar, block_bytes = Measure("cvar", config.level), config.block_bytes
    return {
        "cross_entropy": _cross_entropy,
        "paper_rule": lambda x: _whole_tensor(x, lambda p, ratio: _quantile_rule(p, ratio, config.level, parts=1)),
        "paper_rule_halves": lambda x: _whole_tensor(
            x, lambda p, ratio: _quantile_rule(p, ratio, config.level, parts=2)
        ),
        "sorted_cvar": lambda x: _whole_tensor(x, lambda p, ratio: _sorted_cvar(p, ratio, config.level)),
        "pair_mean": lambda x: _pair(x, Measure("mean"), block_bytes),
        "pair_cvar": lambda x: _pair(x, cvar, block_bytes),
        "pair_cvar_top_k": lambda x: _pair(x, cvar, block_bytes, x.top_k),
        "sequence_cvar": lambda x: _sequence(x, cvar, block_bytes),
    }


TEXTS = {
    "cross_entropy": "plain cross-entropy head",
    "paper_rule": "published rule, whole tensors",
    "paper_rule_halves": "published rule, halves (its default)",
    "sorted_cvar": "CVaR by a sort, whole tensors",
    "pair_mean": "fused pair loss, mean (KL)",
    "pair_cvar": "fused pair loss, CVaR",
    "pair_cvar_top_k": "fused pair loss, CVaR, top-k record",
    "sequence_cvar": "per-sequence scores, CVaR",
}
SLOW = ("paper_rule", "paper_rule_halves", "sorted_cvar")


def _cross_entropy(x: Inputs) -> Tensor:
    logits = F.linear(x.hidden.flatten(0, 1), x.weight)
    return F.cross_entropy(logits.float(), x.labels.flatten(), reduction="sum")


def _pair(x: Inputs, measure: Measure, block_bytes: int, record: TopKReference | None = None) -> Tensor:
    reference = HiddenReference(x.ref_hidden, Head(x.ref_weight)) if record is None else record
    weight = torch.ones(len(x.labels) // 2, device=x.hidden.device)
    head = Head(x.weight)
    return pair_loss(x.hidden, head, reference, x.labels, x.mask, measure, _FORM, weight, block_bytes=block_bytes).loss


def _sequence(x: Inputs, measure: Measure, block_bytes: int) -> Tensor:
    reference = HiddenReference(x.ref_hidden, Head(x.ref_weight))
    scores = sequence_scores(x.hidden, Head(x.weight), reference, x.labels, x.mask, measure, block_bytes=block_bytes)
    assert scores.risk is not None
    return preference_loss(_FORM, *scores.logps.chunk(2), *scores.ref_logps.chunk(2), *scores.risk.chunk(2)).loss.sum()


def _whole_tensor(x: Inputs, risk: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss from whole tensors; ``risk`` maps pi_ref and L, both ``[N, V]``, to ``[N]``."""
    log_pi = F.linear(x.hidden.flatten(0, 1), x.weight).float().log_softmax(-1)
    with torch.no_grad():
        p = F.linear(x.ref_hidden, x.ref_weight).float().softmax(-1)
        log_ref = p.log()
    ratio = log_ref - log_pi
    per_token = risk(p, ratio)
    with torch.no_grad():
        kl = (p * ratio).sum(-1)  # reported beside the loss, as the fused heads do
    label = x.labels.flatten().unsqueeze(-1)
    columns = (log_pi.gather(-1, label), log_ref.gather(-1, label), per_token, kl)
    logps, ref_logps, risks, _ = (column.reshape(x.labels.shape).sum(-1) for column in columns)
    return preference_loss(_FORM, *logps.chunk(2), *ref_logps.chunk(2), *risks.chunk(2)).loss.sum()


def _quantile_rule(p: Tensor, ratio: Tensor, level: float, parts: int) -> Tensor:
    """The published code's rule: an unweighted quantile over the vocabulary axis, and the sum of what is above it."""
    kept = []
    for mass, values in zip(p.tensor_split(parts, -1), ratio.tensor_split(parts, -1), strict=True):
        edge = values.quantile(1 - level, dim=-1, keepdim=True)
        kept.append(mass * values * (values > edge).float())
    # That code puts its halves together again before it sums.
    return (torch.cat(kept, -1) if parts > 1 else kept[0]).sum(-1)


def _sorted_cvar(p: Tensor, ratio: Tensor, level: float) -> Tensor:
    """CVaR by its definition: worst first, until the mass is used up."""
    values, order = ratio.sort(-1, descending=True)
    mass = p.gather(-1, order)
    before = mass.cumsum(-1) - mass
    taken = torch.minimum(mass, (level - before).clamp_min(0.0))
    return (taken * values).sum(-1) / level
