"""What the loss needs of each position, from logits: the only code that touches ``[positions, vocabulary]`` values.

Given a block of policy logits and what is known of the reference there, it gives per position the label's
log-probability under both, the KL and the risk, and (where asked) overwrites the policy logits with the gradient
of a weighted sum of those three. With o the one-hot of the label, pi the policy, p the reference, q the distorted
reference of the measure:

    d logp / d logits = o - pi,   d KL / d logits = pi - p,   d risk / d logits = (sum q) * pi - q.

A block is worked through in slices small enough for the processor's cache: some forty passes over a slice that
stays there cost less than three over memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.risk import triton_rows
from pipeline.risk.block import NO_TOKEN, Positions, TopKBlock, Weights
from pipeline.risk.law import Law, Risk, Workspace
from pipeline.risk.measures import Measure

_SLICE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Logits in one slice: on a CPU its buffers fit the cache, on a GPU the slice fills the device."""


def reduce_block(
    logits: Tensor,
    reference: Tensor | TopKBlock | None,
    labels: Tensor,
    measure: Measure,
    weights: Weights | None,
    cap: float | None,
    workspace: Workspace,
) -> Positions:
    """Reduce a block, slice by slice.

    Args:
        logits: ``[n, V]`` policy logits, float32 or float64, overwritten: with the gradient of
            sum(weights.logps * logps + weights.kl * kl + weights.risk * risk) with respect to the logits before
            soft-capping when ``weights`` is given, with scratch otherwise.
        reference: reference logits ``[n, V]`` (overwritten), a top-k record, or None for log-probabilities alone.
        labels: ``[n]`` token ids.
        measure: the risk measure; not used without a reference.
        weights: None when no gradient is wanted.
        cap: the soft cap already applied to ``logits``, or None.
        workspace: buffers of a slice, kept by the caller from block to block.
    """
    parts = []
    for rows in _slices(logits):
        part = None if weights is None else weights.slice(rows)
        slope = None if cap is None or part is None else 1 - (logits[rows] / cap).square_()
        if reference is None:
            parts.append(_label_only(logits[rows], labels[rows], part, workspace))
        elif isinstance(reference, TopKBlock):
            block = TopKBlock(reference.ids[rows], reference.log_probs[rows], reference.log_rest[rows])
            parts.append(_top_k(logits[rows], block, labels[rows], measure, part, workspace))
        else:
            parts.append(_whole(logits[rows], reference[rows], labels[rows], measure, part, workspace))
        if slope is not None:
            logits[rows].mul_(slope)
    if len(parts) == 1:
        return parts[0]
    logps, *others = zip(*parts, strict=True)
    return Positions(torch.cat(logps), *(None if column[0] is None else torch.cat(column) for column in others))


def laws(logits: Tensor, ref_logits: Tensor, workspace: Workspace) -> Iterator[tuple[slice, Law, Tensor]]:
    """Slice by slice: which positions, the law of L there, and log-sum-exp of the policy logits ``[n, 1]``;
    ``ref_logits`` is overwritten with log pi_ref. A law is valid until the next one."""
    for rows in _slices(logits):
        # The same route for both normalisers: equal logits then have equal ones.
        log_norm = _softmax(logits[rows], workspace.take("pi", logits[rows]))[1]
        p, ref_norm = _softmax(ref_logits[rows], workspace.take("p", logits[rows]))
        yield rows, _law(logits[rows], log_norm, ref_logits[rows], ref_norm, p, workspace), log_norm


def _slices(logits: Tensor) -> Iterator[slice]:
    """The rows of a block in slices; one empty slice when there are none."""
    size = max(1, _SLICE_ELEMENTS.get(logits.device.type, 1 << 24) // logits.shape[-1])
    for start in range(0, max(1, len(logits)), size):
        yield slice(start, start + size)


def _law(
    logits: Tensor, log_norm: Tensor, ref_logits: Tensor, ref_norm: Tensor, p: Tensor, workspace: Workspace
) -> Law:
    """The law of L; ``ref_logits`` is overwritten with log pi_ref.

    Logits are subtracted before their normalisers: equal ones then give an L without rounding of its own, which at
    logits in the hundreds would be wider than a tie.
    """
    ratio = torch.sub(ref_logits, logits, out=workspace.take("ratio", logits)).add_(log_norm - ref_norm)
    log_ref = ref_logits.sub_(ref_norm)
    # Only a -inf of the reference makes its row's minimum infinite; without one the fill would be a wasted pass.
    if bool(torch.isinf(log_ref.amin()) if len(log_ref) else False):
        ratio.masked_fill_(log_ref == -torch.inf, 0.0)
    return Law(ratio, log_ref, p, workspace)


def _softmax(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``[n, V]`` and log-sum-exp ``[n, 1]``. The largest probability is 1 / sum exp(l - max), at least
    1 / V: its logarithm has all its digits, so log-probabilities are never logarithms of small ones."""
    probs = torch.softmax(logits, -1, out=out)
    return probs, logits.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log_()


def _label_only(logits: Tensor, labels: Tensor, weights: Weights | None, workspace: Workspace) -> Positions:
    label = labels.unsqueeze(-1)
    probs, log_norm = _softmax(logits, workspace.take("pi", logits))
    logps = (logits.gather(-1, label) - log_norm).squeeze(-1)
    if weights is not None:
        torch.mul(probs, -weights.logps.unsqueeze(-1), out=logits)
        logits.scatter_add_(-1, label, weights.logps.unsqueeze(-1))
    return Positions(logps, None, None, None)


def _whole(
    logits: Tensor,
    ref_logits: Tensor,
    labels: Tensor,
    measure: Measure,
    weights: Weights | None,
    workspace: Workspace,
) -> Positions:
    if triton_rows.usable(logits, measure, _whole_in_torch):
        return triton_rows.reduce_rows(logits, ref_logits, labels, measure, weights)
    return _whole_in_torch(logits, ref_logits, labels, measure, weights, workspace)


def _whole_in_torch(
    logits: Tensor,
    ref_logits: Tensor,
    labels: Tensor,
    measure: Measure,
    weights: Weights | None,
    workspace: Workspace | None = None,
) -> Positions:
    workspace = Workspace() if workspace is None else workspace
    label = labels.unsqueeze(-1)
    pi, log_norm = _softmax(logits, workspace.take("pi", logits))
    p, ref_norm = _softmax(ref_logits, workspace.take("p", logits))
    logps = (logits.gather(-1, label) - log_norm).squeeze(-1)
    ref_logps = (ref_logits.gather(-1, label) - ref_norm).squeeze(-1)
    law = _law(logits, log_norm, ref_logits, ref_norm, p, workspace)
    risk = measure.of(law)
    if weights is not None:
        scale, minus_kl, minus_risk = _factors(weights, risk, measure)
        torch.mul(pi, scale, out=logits)
        if minus_kl is not None:
            logits.addcmul_(law.p, minus_kl)
        if minus_risk is not None:
            logits.addcmul_(risk.q, minus_risk)
        logits.scatter_add_(-1, label, weights.logps.unsqueeze(-1))
    return Positions(logps, ref_logps, law.mean, risk.value)


def _top_k(
    logits: Tensor,
    record: TopKBlock,
    labels: Tensor,
    measure: Measure,
    weights: Weights | None,
    workspace: Workspace,
) -> Positions:
    """On the law of k tokens and one symbol for the rest; the rest's share of q is spread in proportion to pi."""
    label = labels.unsqueeze(-1)
    label_logits = logits.gather(-1, label)
    missing = record.ids == NO_TOKEN
    ids = torch.where(missing, record.ids[:, :1], record.ids)  # one that is there: it takes nothing from the rest
    top_logits = logits.gather(-1, ids).masked_fill_(missing, -torch.inf)
    logits.scatter_(-1, ids, -torch.inf)
    rest, rest_norm = _softmax(logits, workspace.take("pi", logits))  # the policy among the rest
    # Nothing is left at k = V, nor where the policy masks all the rest.
    has_none = torch.isneginf(logits.amax(-1, keepdim=True))
    rest.masked_fill_(has_none, 0.0)
    rest_norm.masked_fill_(has_none, -torch.inf)
    log_norm = torch.logsumexp(torch.cat([top_logits, rest_norm], -1), -1, keepdim=True)
    log_pi = torch.cat([top_logits, rest_norm], -1).sub_(log_norm)
    law = Law.between(torch.cat([record.log_probs, record.log_rest.unsqueeze(-1)], -1).to(log_pi.dtype), log_pi)
    risk = measure.of(law)
    if weights is not None:
        scale, minus_kl, minus_risk = _factors(weights, risk, measure)
        grad = log_pi.exp().mul_(scale)
        if minus_kl is not None:
            grad.addcmul_(law.p, minus_kl)
        if minus_risk is not None:
            grad.addcmul_(risk.q, minus_risk)
        torch.mul(rest, grad[:, -1:], out=logits)
        logits.scatter_add_(-1, ids, grad[:, :-1])  # they hold zero, the rest's share of a token of the record
        logits.scatter_add_(-1, label, weights.logps.unsqueeze(-1))
    logps = (label_logits - log_norm).squeeze(-1)
    return Positions(logps, None, law.mean, risk.value)


def _factors(weights: Weights, risk: Risk, measure: Measure) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Factors ``[n, 1]`` of pi, p and q in the gradient."""
    scale = -weights.logps
    if weights.kl is not None:
        scale = scale + weights.kl
    if weights.risk is not None:
        scale = scale + (weights.risk if measure.is_risk_measure else weights.risk * risk.q.sum(-1))
    minus_kl = None if weights.kl is None else -weights.kl.unsqueeze(-1)
    minus_risk = None if weights.risk is None else -weights.risk.unsqueeze(-1)
    return scale.unsqueeze(-1), minus_kl, minus_risk
