"""The output head of policy and reference, in blocks of positions.

From final hidden states to per-sequence log-probabilities, sequential KL and sequential risk, without ever
holding a ``[batch, time, vocabulary]`` tensor: logits are formed block by block, reduced, and formed again in
the backward pass. Only positions under ``mask`` are touched; prompt and padding cost nothing.

Gradients (o is the one-hot of the label, q the distorted reference of the measure):

    d logp / d logits = o - pi,   d KL / d logits = pi - pi_ref,   d risk / d logits = pi - q
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.risk.measures import Measure

_LIVE_BUFFERS = 8
"""Block-sized float32 buffers alive at once in the widest moment (policy and reference logits, log-softmax,
probabilities, log-ratio, q, gradient)."""


@dataclass(frozen=True)
class Head:
    """An output head: logits = hidden @ weight.T + bias; ``weight [V, d]``, ``bias [V]`` or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class HiddenReference:
    """Reference record of the hidden tier: the rows under the mask, in (sequence, position) order.

    ``hidden [N, d_ref]`` with N = number of true entries of the mask; ``head`` is the reference's frozen head.
    """

    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class ScalarReference:
    """Reference record of the scalar tier: ``logps [B]``, the log-probability of each whole response."""

    logps: Tensor


Reference = HiddenReference | ScalarReference


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


def positions_per_block(block_bytes: int, vocab_size: int) -> int:
    """How many positions fit the memory budget of one block; at least one."""
    return max(1, block_bytes // (_LIVE_BUFFERS * 4 * vocab_size))


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
        mask: ``[B, T]`` bool, true on response positions.
        measure: the risk measure of the loss.
        block_bytes: memory for one block of positions.

    Raises:
        ValueError: when the record does not fit the mask, or the heads have different vocabularies.
    """
    num_sequences = hidden.shape[0]
    if isinstance(reference, ScalarReference):
        if reference.logps.shape != (num_sequences,):
            raise ValueError(f"scalar reference has shape {tuple(reference.logps.shape)}, expected ({num_sequences},)")
        logps = sequence_logps(hidden, head, labels, mask, block_bytes=block_bytes)
        return SequenceScores(logps, reference.logps, None, None)
    rows, row_labels, sequence = _select(hidden, labels, mask)
    _check(reference, rows, head)
    return SequenceScores(
        *_BlockedHead.apply(
            rows,
            head.weight,
            head.bias,
            reference.hidden,
            reference.head.weight,
            reference.head.bias,
            row_labels,
            sequence,
            num_sequences,
            measure,
            block_bytes,
        )
    )


def sequence_logps(hidden: Tensor, head: Head, labels: Tensor, mask: Tensor, *, block_bytes: int) -> Tensor:
    """Log-probability of the masked labels of each sequence, ``[B]``, nats (shapes as `sequence_scores`)."""
    rows, row_labels, sequence = _select(hidden, labels, mask)
    none = (None, None, None)
    return _BlockedHead.apply(
        rows, head.weight, head.bias, *none, row_labels, sequence, hidden.shape[0], _KL, block_bytes
    )[0]


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
    """The same quantities per position and for several measures, for evaluation (shapes as `sequence_scores`)."""
    rows, row_labels, _ = _select(hidden, labels, mask)
    _check(reference, rows, head)
    num_rows = rows.shape[0]
    logps, ref_logps = (rows.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    risk = {measure.label: rows.new_empty(num_rows, dtype=torch.float32) for measure in measures}
    size = positions_per_block(block_bytes, head.weight.shape[0])
    for start in range(0, num_rows, size):
        block = slice(start, start + size)
        log_pi = _log_probs(rows[block], head.weight, head.bias)
        log_ref = _log_probs(reference.hidden[block], reference.head.weight, reference.head.bias)
        label = row_labels[block].unsqueeze(-1)
        logps[block] = log_pi.gather(-1, label).squeeze(-1)
        ref_logps[block] = log_ref.gather(-1, label).squeeze(-1)
        for measure in measures:
            risk[measure.label][block] = measure.value(log_ref, log_pi)[0]
    return TokenScores(logps, ref_logps, risk)


def _select(hidden: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows under the mask ``[N, d]``, their labels ``[N]`` and the sequence each belongs to ``[N]``."""
    if labels.shape != mask.shape or hidden.shape[:2] != mask.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, labels {tuple(labels.shape)} and mask {tuple(mask.shape)} do not agree"
        )
    return hidden[mask], labels[mask], mask.nonzero()[:, 0]


def _check(reference: HiddenReference, rows: Tensor, head: Head) -> None:
    if reference.hidden.shape[0] != rows.shape[0]:
        raise ValueError(f"reference record has {reference.hidden.shape[0]} rows, the mask has {rows.shape[0]}")
    if reference.head.weight.shape[0] != head.weight.shape[0]:
        raise ValueError(
            f"policy and reference have different vocabularies: {head.weight.shape[0]} and "
            f"{reference.head.weight.shape[0]} entries"
        )


def _log_probs(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Normalised log-probabilities ``[n, V]`` in float32 (float64 stays), whatever the model's dtype.

    Half-precision inputs are multiplied into float32: logits rounded to bfloat16 are off by up to a tenth of a
    nat, and the tail of the log-ratio would measure that rounding.
    """
    if rows.dtype in (torch.bfloat16, torch.float16):
        wide = torch.mm(rows, weight.T, out_dtype=torch.float32) if rows.is_cuda else rows.float() @ weight.float().T
        logits = wide if bias is None else wide + bias.float()
    else:
        logits = torch.nn.functional.linear(rows, weight, bias)
    return torch.log_softmax(logits, -1)


class _BlockedHead(torch.autograd.Function):
    """Forward sums and hand-written gradients; logits exist for one block of positions at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ref_rows: Tensor | None,
        ref_weight: Tensor | None,
        ref_bias: Tensor | None,
        labels: Tensor,
        sequence: Tensor,
        num_sequences: int,
        measure: Measure,
        block_bytes: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
        anchor = rows.new_empty(rows.shape[0], dtype=wide)
        ctx.save_for_backward(rows, weight, bias, ref_rows, ref_weight, ref_bias, labels, sequence, anchor)
        ctx.measure = measure
        ctx.size = size = positions_per_block(block_bytes, weight.shape[0])
        logps, ref_logps, kl, risk = (rows.new_zeros(num_sequences, dtype=wide) for _ in range(4))
        for start in range(0, rows.shape[0], size):
            block = slice(start, start + size)
            label, owner = labels[block].unsqueeze(-1), sequence[block]
            log_pi = _log_probs(rows[block], weight, bias)
            logps.index_add_(0, owner, log_pi.gather(-1, label).squeeze(-1))
            if ref_rows is None or ref_weight is None:
                continue
            log_ref = _log_probs(ref_rows[block], ref_weight, ref_bias)
            ref_logps.index_add_(0, owner, log_ref.gather(-1, label).squeeze(-1))
            block_risk, anchor[block] = measure.value(log_ref, log_pi)
            risk.index_add_(0, owner, block_risk)
            kl.index_add_(0, owner, block_risk if measure == _KL else _KL.value(log_ref, log_pi)[0])
        if ref_rows is None:
            return logps, None, None, None
        ctx.mark_non_differentiable(ref_logps)
        return logps, ref_logps, kl, risk

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g_logps, _, g_kl, g_risk = grads
        rows, weight, bias, ref_rows, ref_weight, ref_bias, labels, sequence, anchor = ctx.saved_tensors
        # A loss without risk (dpo, or a metric only) needs no reference logits here.
        use_kl, use_risk = (ref_rows is not None and g is not None and bool((g != 0).any()) for g in (g_kl, g_risk))
        wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
        grad_rows = torch.empty_like(rows)
        # With a half-precision head the sum over positions is kept in float32.
        grad_weight = torch.zeros_like(weight, dtype=wide)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for start in range(0, rows.shape[0], ctx.size):
            block = slice(start, start + ctx.size)
            owner, block_rows = sequence[block], rows[block]
            log_pi = _log_probs(block_rows, weight, bias)
            scale_pi = -g_logps[owner]
            grad = torch.zeros_like(log_pi)
            if use_kl or use_risk:
                log_ref = _log_probs(ref_rows[block], ref_weight, ref_bias)
                if use_risk:
                    scale = g_risk[owner]
                    q = ctx.measure.distorted(log_ref, log_pi, anchor[block])
                    grad.addcmul_(q, scale.unsqueeze(-1), value=-1)
                    scale_pi = scale_pi + scale
                if use_kl:
                    scale = g_kl[owner]
                    grad.addcmul_(log_ref.exp(), scale.unsqueeze(-1), value=-1)
                    scale_pi = scale_pi + scale
            grad.addcmul_(log_pi.exp_(), scale_pi.unsqueeze(-1))
            grad.scatter_add_(-1, labels[block].unsqueeze(-1), g_logps[owner].unsqueeze(-1))
            grad = grad.to(weight.dtype)
            torch.mm(grad, weight, out=grad_rows[block])
            if grad.dtype == wide:
                grad_weight.addmm_(grad.T, block_rows)
            else:
                grad_weight += grad.T @ block_rows
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_rows, grad_weight.to(weight.dtype), grad_bias, *([None] * 8)


_KL = Measure("mean", 1.0)
