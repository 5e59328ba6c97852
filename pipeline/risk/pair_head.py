"""The loss of preference pairs from hidden states, with its gradients, in four products with a head.

In every loss of the family a pair's gradient is one number, -sigmoid(-z), times the gradient of z, and that
direction is known at each token before z is (`pipeline.risk.losses`). So the forward pass forms a pair's logits,
turns them into the direction in place, sums z, and multiplies hidden states and head by the direction at once;
the number scales the small side of each product. Policy, reference, two gradients: four products, where forming
the logits again in a backward pass makes six, and a plain cross-entropy head takes three.

The direction of a whole pair is held until its z is known: ``positions of the pair * vocabulary`` numbers. A pair
that does not fit the block's budget is scored first and gets its gradients in a second pass over its positions:
six products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import RiskError
from pipeline.risk.block import Weights
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
from pipeline.risk.losses import PairForm
from pipeline.risk.measures import Measure
from pipeline.risk.positions import reduce_block
from pipeline.risk.sequence_head import check_measure_served


class PairScores(NamedTuple):
    """The loss and what it was made of; only ``loss`` carries a gradient."""

    loss: Tensor
    """Scalar: sum over the pairs of weight * loss."""
    losses: Tensor
    """``[P]``."""
    logps: Tensor
    """``[2P]``, nats, chosen first; so are the other three, of which the scalar tier has no ``kl`` and ``risk``."""
    ref_logps: Tensor
    kl: Tensor | None
    risk: Tensor | None


def pair_loss(
    hidden: Tensor,
    head: Head,
    reference: Reference,
    labels: Tensor,
    mask: Tensor,
    measure: Measure,
    form: PairForm,
    weight: Tensor,
    *,
    block_bytes: int,
    check_finite: bool = True,
) -> PairScores:
    """Weighted sum of the pairs' losses, differentiable once with respect to hidden states and head.

    Args:
        hidden: ``[2P, T, d]`` final hidden states of the policy: P chosen responses, then their P rejected ones;
            ``hidden[b, t]`` predicts ``labels[b, t]``.
        head: the policy's output head.
        reference: the reference's record for the masked positions.
        labels: ``[2P, T]`` token ids.
        mask: ``[2P, T]`` bool, true on response positions; prompt and padding cost nothing.
        measure: the risk measure D of the loss (and of the scores).
        form: the loss, from `pipeline.risk.losses.pair_form`.
        weight: ``[P]``, 0 for padding.
        block_bytes: memory for one block of logits.
        check_finite: refuse scores that are not finite. A worker of several leaves that to who sees all of them:
            an exception on one would leave the others waiting.

    Raises:
        RiskError: when shapes, dtypes or vocabularies do not fit, no position of a pair that counts is under the
            mask, the record cannot serve loss or measure, or a score is not finite; it names the tensor and the
            remedy.
    """
    if hidden.ndim != 3 or len(hidden) % 2 or weight.shape != (len(hidden) // 2,):
        raise RiskError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}: "
            "give chosen then rejected responses, [2P, T, d], and one weight a pair, [P]"
        )
    rows = select_rows(hidden, head, labels, mask)
    check_reference(reference, rows, head, len(hidden))
    check_measure_served(reference, measure)
    if form.uses_risk and isinstance(reference, ScalarReference):
        raise RiskError(
            "this loss needs the reference's distribution at every token, the scalar tier holds one number a "
            "response: use the hidden tier, or dpo"
        )
    empty = (torch.bincount(rows.sequence % len(weight), minlength=len(weight)) == 0) & (weight != 0)
    if bool(empty.any()):
        raise RiskError(
            f"the mask is false at every position of pair {int(empty.nonzero()[0])}: there is nothing to score; mark "
            "the response tokens, or give the pair weight 0"
        )
    task = _Task(rows, head, reference, measure, form, weight, block_bytes, torch.is_grad_enabled())
    loss, losses, sums = _PairHead.apply(rows.hidden, head.weight, head.bias, task)
    if check_finite and not bool(torch.isfinite(sums).all()):
        raise explain_not_finite(rows, head, reference)
    has_law = not isinstance(reference, ScalarReference)
    return PairScores(loss, losses, sums[0], sums[1], sums[2] if has_law else None, sums[3] if has_law else None)


@dataclass(frozen=True)
class _Task:
    rows: Rows
    head: Head
    reference: Reference
    measure: Measure
    form: PairForm
    weight: Tensor
    block_bytes: int
    wants_grad: bool


class _PairHead(torch.autograd.Function):
    """Everything happens in the forward pass; the backward pass scales what is there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> tuple[Tensor, ...]:
        wants = tuple(task.wants_grad and needed for needed in ctx.needs_input_grad[:3])
        pass_ = _Pass(task, hidden, Head(weight, bias, task.head.scale, task.head.softcap, task.head.vocab_size), wants)
        losses, sums = pass_.run()
        ctx.grads = pass_.grads()
        ctx.mark_non_differentiable(losses, sums)
        return (losses * task.weight).sum(), losses, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the pair loss was differentiated before: run its forward pass again")
        grads, ctx.grads = ctx.grads, None
        scaled = (None if part is None else part.mul_(grad).to(dtype) for part, dtype in grads)
        return *scaled, None


class _Pass:
    """One pass over all pairs: sums of every sequence, and the gradients where they are wanted."""

    def __init__(self, task: _Task, hidden: Tensor, head: Head, wants: tuple[bool, ...]) -> None:
        self._task, self._hidden, self._head = task, hidden, head
        self._wide = wide = accumulation_dtype(hidden.dtype)
        self._num_pairs = len(task.weight)
        self._pair = task.rows.sequence % self._num_pairs if len(hidden) else task.rows.sequence
        reference = task.reference
        # Of both logits' budget, three quarters hold the policy's, of whole pairs, and one the reference's in turn.
        both = positions_per_block(task.block_bytes, head.num_tokens, wide)
        self._size, self._ref_size = 2 * both, 2 * both
        self._frozen = None
        if isinstance(reference, HiddenReference):
            self._size, self._ref_size = max(1, 3 * both // 2), max(1, both // 2)
            self._frozen = Projection(reference.head, min(self._ref_size, len(hidden)))
        self._policy = Projection(head, min(self._size, len(hidden)))
        self._sums = hidden.new_zeros((4, 2 * self._num_pairs), dtype=wide)
        if isinstance(reference, ScalarReference):
            self._sums[1] = reference.logps
        self._weight = task.weight.to(wide)
        self._workspace = Workspace()
        self._losses = hidden.new_zeros(self._num_pairs, dtype=wide)
        self._grad_hidden = torch.zeros_like(hidden) if wants[0] else None
        self._grad_weight = torch.zeros_like(head.weight, dtype=wide) if wants[1] else None
        self._grad_bias = torch.zeros_like(head.bias, dtype=wide) if wants[2] and head.bias is not None else None
        self._wants_grad = any(wants)

    def run(self) -> tuple[Tensor, Tensor]:
        """Losses ``[P]`` and the sums logps, ref_logps, kl, risk ``[4, 2P]``."""
        for first, last, positions in self._blocks():
            pairs = slice(first, last)
            if not len(positions):
                self._close(pairs)
                continue
            if len(positions) <= self._size:
                directions = self._score(positions, self._wants_grad)
                factor = self._close(pairs)
                if self._wants_grad:
                    self._add_gradients(positions, directions, factor)
                continue
            for part in positions.split(self._size):
                self._score(part, False)
            factor = self._close(pairs)
            if self._wants_grad:
                sums = self._sums.clone()
                for part in positions.split(self._size):
                    self._add_gradients(part, self._score(part, True), factor)
                self._sums = sums
        return self._losses, self._sums

    def grads(self) -> tuple[tuple[Tensor | None, torch.dtype], ...]:
        """Gradients of hidden states, weight and bias, and the dtypes they are due in."""
        bias_dtype = self._wide if self._head.bias is None else self._head.bias.dtype
        return (
            (self._grad_hidden, self._hidden.dtype),
            (self._grad_weight, self._head.weight.dtype),
            (self._grad_bias, bias_dtype),
        )

    def _blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first pair, last pair + 1, their positions) of as many whole pairs as fit; at least one."""
        order = self._pair.argsort(stable=True)
        counts = torch.bincount(self._pair, minlength=self._num_pairs).tolist()
        first, start, end = 0, 0, 0
        for pair, count in enumerate(counts):
            if pair > first and end + count - start > self._size:
                yield first, pair, order[start:end]
                first, start = pair, end
            end += count
        if self._num_pairs:
            yield first, self._num_pairs, order[start:end]

    def _score(self, positions: Tensor, wants_grad: bool) -> Tensor:
        """Add the positions to the sums; returns the gradient of z at them ``[n, V]`` where it is wanted."""
        logits = self._policy.logits(self._hidden[positions])
        for start in range(0, len(positions), self._ref_size):
            part = slice(start, start + self._ref_size)
            self._reduce(logits[part], positions[part], wants_grad)
        return logits

    def _reduce(self, logits: Tensor, positions: Tensor, wants_grad: bool) -> None:
        task, form = self._task, self._task.form
        reference = task.reference
        beside: Any = None
        if self._frozen is not None and isinstance(reference, HiddenReference):
            beside = self._frozen.logits(reference.hidden[positions])
        elif isinstance(reference, TopKReference):
            beside = reference.block(positions)
        sequence = task.rows.sequence[positions]
        weights = None
        if wants_grad:
            is_chosen = sequence < self._num_pairs
            chosen = is_chosen.to(self._wide)
            on_logps = (2 * chosen - 1) * form.logps
            on_risk = chosen * form.chosen_risk_gradient - (1 - chosen) * form.risk
            weights = Weights(on_logps, None, on_risk if form.uses_risk else None)
        parts = reduce_block(
            logits, beside, task.rows.labels[positions], task.measure, weights, self._head.softcap, self._workspace
        )
        ref_logps = reference.label_logps[positions] if isinstance(reference, TopKReference) else parts.ref_logps
        for total, column in zip(self._sums, (parts.logps, ref_logps, parts.kl, parts.risk), strict=True):
            if column is not None:
                total.index_add_(0, sequence, column.to(self._wide))

    def _close(self, pairs: slice) -> Tensor:
        """Losses of finished pairs; d(weight * loss) / dz of every pair ``[P]``, of which theirs are meant."""
        logps, ref_logps, _, risk = self._sums
        half = self._num_pairs
        change = logps - ref_logps
        z = self._task.form.logit(change[:half] - change[half:], risk[:half], risk[half:])
        self._losses[pairs] = -F.logsigmoid(z[pairs])
        return -torch.sigmoid(-z) * self._weight

    def _add_gradients(self, positions: Tensor, directions: Tensor, factor: Tensor) -> None:
        row_scale = factor[self._pair[positions]]
        if self._grad_hidden is not None:
            self._grad_hidden[positions] = self._policy.grad_rows(directions, row_scale).to(self._hidden.dtype)
        if self._grad_weight is not None:
            self._policy.add_grad_weight(self._grad_weight, directions, self._hidden[positions], row_scale)
        if self._grad_bias is not None:
            self._policy.add_grad_bias(self._grad_bias, directions, row_scale)
