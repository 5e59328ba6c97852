"""Scores of whole sequences from hidden states, in blocks of positions, for any loss.

No ``[batch, time, vocabulary]`` tensor is ever held: logits are formed block by block, reduced, and formed again
in the backward pass. That takes six products with a head: policy and reference twice, and two gradients. A loss
of pairs takes four in `pipeline.risk.pair_head`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import RiskError
from pipeline.risk.block import Positions, Weights
from pipeline.risk.head import (
    Head,
    HiddenReference,
    Projection,
    Reference,
    Rows,
    ScalarReference,
    TopKReference,
    accumulation_dtype,
    check_reference,
    explain_not_finite,
    positions_per_block,
    select_rows,
)
from pipeline.risk.law import Workspace
from pipeline.risk.measures import Measure
from pipeline.risk.positions import laws, reduce_block

_KL = Measure("mean")


class SequenceScores(NamedTuple):
    """Sums over the masked positions of each sequence, ``[B]``, nats. ``kl`` and ``risk`` are None for the
    scalar tier. ``logps``, ``kl`` and ``risk`` carry gradients to hidden states and head; ``ref_logps`` does not."""

    logps: Tensor
    ref_logps: Tensor
    kl: Tensor | None
    risk: Tensor | None


class TokenScores(NamedTuple):
    """Per masked position, ``[N]``, nats, no gradient; ``risk`` maps each measure's label to its values."""

    logps: Tensor
    ref_logps: Tensor
    risk: dict[str, Tensor]


def sequence_scores(
    hidden: Tensor,
    head: Head,
    reference: Reference,
    labels: Tensor,
    mask: Tensor,
    measure: Measure,
    *,
    block_bytes: int,
) -> SequenceScores:
    """Per-sequence policy and reference log-probabilities, sequential KL and sequential risk.

    Args:
        hidden: ``[B, T, d]`` final hidden states of the policy; ``hidden[b, t]`` predicts ``labels[b, t]``.
        head: the policy's output head.
        reference: the reference's record for the masked positions.
        labels: ``[B, T]`` token ids.
        mask: ``[B, T]`` bool, true on response positions; prompt and padding cost nothing.
        measure: the risk measure of the loss.
        block_bytes: memory for one block of logits.

    Raises:
        RiskError: when shapes, dtypes or vocabularies do not fit, no position is under the mask, the record
            cannot serve the measure, or a score is not finite; it names the tensor and the remedy.
    """
    rows = select_rows(hidden, head, labels, mask)
    check_reference(reference, rows, head, len(hidden))
    check_measure_served(reference, measure)
    if not len(rows.hidden):
        raise RiskError("the mask is false at every position: there is nothing to score; mark the response tokens")
    if isinstance(reference, ScalarReference):
        logps = _apply(rows, head, None, len(hidden), _KL, block_bytes)[0]
        scores = SequenceScores(logps, reference.logps, None, None)
    else:
        logps, ref_logps, kl, risk = _apply(rows, head, reference, len(hidden), measure, block_bytes)
        assert ref_logps is not None
        scores = SequenceScores(logps, ref_logps, kl, risk)
    if not all(bool(torch.isfinite(column).all()) for column in scores if column is not None):
        raise explain_not_finite(rows, head, reference)
    return scores


def check_measure_served(reference: Reference, measure: Measure) -> None:
    """Refuse a measure that depends on more than the law of L with a record of part of the vocabulary.

    Raises:
        RiskError: naming the tier that can serve it.
    """
    if isinstance(reference, TopKReference) and not measure.is_risk_measure:
        raise RiskError(
            f"{measure.name} counts the entries of the whole vocabulary, which a top-k record does not hold: "
            "use the hidden tier"
        )


def sequence_logps(
    hidden: Tensor, head: Head, labels: Tensor, mask: Tensor, *, block_bytes: int, check_finite: bool = True
) -> Tensor:
    """Log-probability of the masked labels of each sequence, ``[B]``, nats (arguments as `sequence_scores`, and
    ``check_finite`` as in `pipeline.risk.pair_head.pair_loss`).

    Raises:
        RiskError: when shapes do not fit or a score is not finite.
    """
    rows = select_rows(hidden, head, labels, mask)
    logps = _apply(rows, head, None, len(hidden), _KL, block_bytes)[0]
    if check_finite and not bool(torch.isfinite(logps).all()):
        raise explain_not_finite(rows, head, None)
    return logps


@torch.no_grad()
def token_scores(
    hidden: Tensor,
    head: Head,
    reference: HiddenReference,
    labels: Tensor,
    mask: Tensor,
    measures: tuple[Measure, ...],
    *,
    block_bytes: int,
) -> TokenScores:
    """The same quantities per position and for several measures, for evaluation (arguments as `sequence_scores`).

    Raises:
        RiskError: when shapes, dtypes or vocabularies do not fit or a score is not finite.
    """
    rows = select_rows(hidden, head, labels, mask)
    check_reference(reference, rows, head, len(hidden))
    count, wide = len(rows.hidden), accumulation_dtype(hidden.dtype)
    logps, ref_logps = (rows.hidden.new_empty(count, dtype=wide) for _ in range(2))
    risk = {measure.label: rows.hidden.new_empty(count, dtype=wide) for measure in measures}
    size = min(positions_per_block(block_bytes, head.num_tokens, wide), count)
    policy, frozen = Projection(head, size), Projection(reference.head, size)
    workspace = Workspace()
    for start in range(0, count, max(1, size)):
        block = slice(start, start + size)
        logits, ref_logits = policy.logits(rows.hidden[block]), frozen.logits(reference.hidden[block])
        label = rows.labels[block].unsqueeze(-1)
        logps[block] = logits.gather(-1, label).squeeze(-1)
        for part, law, log_norm in laws(logits, ref_logits, workspace):
            logps[block][part] -= log_norm.squeeze(-1)
            ref_logps[block][part] = law.log_p.gather(-1, label[part]).squeeze(-1)
            for measure in measures:
                risk[measure.label][block][part] = measure.of(law).value
    if not all(bool(torch.isfinite(column).all()) for column in (logps, ref_logps, *risk.values())):
        raise explain_not_finite(rows, head, reference)
    return TokenScores(logps, ref_logps, risk)


def _apply(
    rows: Rows, head: Head, reference: HiddenReference | TopKReference | None, num: int, measure: Measure, budget: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    return _SequenceHead.apply(rows.hidden, head.weight, head.bias, rows, head, reference, num, measure, budget)


class _SequenceHead(torch.autograd.Function):
    """Forward sums, and in the backward pass the gradients of the same blocks formed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        head: Head,
        reference: HiddenReference | TopKReference | None,
        num_sequences: int,
        measure: Measure,
        block_bytes: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        wide = accumulation_dtype(hidden.dtype)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.rows, ctx.head, ctx.reference, ctx.measure = (
            rows._replace(hidden=hidden.new_empty(0)),
            head,
            reference,
            measure,
        )
        ctx.size = min(positions_per_block(block_bytes, head.num_tokens, wide), len(hidden))
        sums = hidden.new_zeros((4, num_sequences), dtype=wide)
        for block, _, parts in _blocks(hidden, head, reference, rows, measure, ctx.size, None):
            ref_logps = reference.label_logps[block] if isinstance(reference, TopKReference) else parts.ref_logps
            for total, column in zip(sums, (parts.logps, ref_logps, parts.kl, parts.risk), strict=True):
                if column is not None:
                    total.index_add_(0, rows.sequence[block], column.to(wide))
        logps, ref_logps, kl, risk = sums.unbind()
        if reference is None:
            return logps, None, None, None
        ctx.mark_non_differentiable(ref_logps)
        return logps, ref_logps, kl, risk

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = accumulation_dtype(hidden.dtype)
        owner = ctx.rows.sequence
        # A loss without risk (dpo, or a metric only) needs no reference here.
        on_kl, on_risk = (
            g[owner] if g is not None and ctx.reference is not None and bool((g != 0).any()) else None
            for g in (grads[2], grads[3])
        )
        reference = None if on_kl is None and on_risk is None else ctx.reference
        on_logps = hidden.new_zeros(len(owner), dtype=wide) if grads[0] is None else grads[0][owner]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        weights = Weights(on_logps, on_kl, on_risk)
        measure = ctx.measure if on_risk is not None else _KL
        head = Head(weight, bias, ctx.head.scale, ctx.head.softcap, ctx.head.vocab_size)
        for block, (policy, grad), _ in _blocks(hidden, head, reference, ctx.rows, measure, ctx.size, weights):
            if grad_hidden is not None:
                grad_hidden[block] = policy.grad_rows(grad, None).to(hidden.dtype)
            if grad_weight is not None:
                policy.add_grad_weight(grad_weight, grad, hidden[block], None)
            if grad_bias is not None:
                policy.add_grad_bias(grad_bias, grad, None)
        due = ((grad_hidden, hidden), (grad_weight, weight), (grad_bias, bias))
        return *(None if grad is None else grad.to(leaf.dtype) for grad, leaf in due), *([None] * 6)


def _blocks(
    hidden: Tensor,
    head: Head,
    reference: HiddenReference | TopKReference | None,
    rows: Rows,
    measure: Measure,
    size: int,
    weights: Weights | None,
) -> Any:
    """Yields (block, (policy projection, its overwritten logits), `Positions`) over all rows."""
    policy = Projection(head, size)
    frozen = Projection(reference.head, size) if isinstance(reference, HiddenReference) else None
    workspace = Workspace()
    for start in range(0, len(hidden), max(1, size)):
        block = slice(start, start + size)
        logits = policy.logits(hidden[block])
        beside: Any = None
        if frozen is not None and isinstance(reference, HiddenReference):
            beside = frozen.logits(reference.hidden[block])
        elif isinstance(reference, TopKReference):
            beside = reference.block(block)
        part = None if weights is None else weights.slice(block)
        parts: Positions = reduce_block(logits, beside, rows.labels[block], measure, part, head.softcap, workspace)
        yield block, (policy, logits), parts
