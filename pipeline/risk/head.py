"""Output heads, what is known of the reference, and the products with a head that scores and gradients take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import RiskError
from pipeline.risk.block import NO_TOKEN, TopKBlock


@dataclass(frozen=True)
class Head:
    """An output head: logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    Attributes:
        weight: ``[rows, d]``.
        bias: ``[rows]`` or None.
        scale: factor of the logits (Cohere's logit_scale; one over Granite's logits_scaling).
        softcap: the cap (Gemma's final_logit_softcapping), or None.
        vocab_size: rows of ``weight`` beyond it are padding: they are never produced and get no gradient. None is
            all rows.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocab_size: int | None = None

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.weight.shape[0] if self.vocab_size is None else self.vocab_size


@dataclass(frozen=True)
class HiddenReference:
    """Reference record of the hidden tier: the rows under the mask, in (sequence, position) order.

    ``hidden [N, d_ref]`` with N = number of true entries of the mask; ``head`` is the reference's frozen head.
    """

    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class TopKReference:
    """Reference record of the top-k tier, rows as in `HiddenReference`: a lower bound of every risk measure.

    ``ids [N, k]`` (different within a row, or `pipeline.risk.block.NO_TOKEN` beside -inf), ``log_probs [N, k]``,
    ``log_rest [N]`` (log of the mass outside, -inf when there is none) and ``label_logps [N]``, the log-probability
    of the position's own token.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    label_logps: Tensor

    def block(self, rows: Tensor | slice) -> TopKBlock:
        """The law at some of the positions."""
        return TopKBlock(self.ids[rows], self.log_probs[rows], self.log_rest[rows])


@dataclass(frozen=True)
class ScalarReference:
    """Reference record of the scalar tier: ``logps [B]``, the log-probability of each whole response."""

    logps: Tensor


Reference = HiddenReference | TopKReference | ScalarReference


class Rows(NamedTuple):
    """What lies under the mask, in (sequence, position) order."""

    hidden: Tensor
    """``[N, d]``."""
    labels: Tensor
    """``[N]``."""
    sequence: Tensor
    """``[N]``, the sequence each belongs to."""


def positions_per_block(block_bytes: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> int:
    """How many positions' policy and reference logits fit the memory budget of one block; at least one."""
    return max(1, block_bytes // (2 * vocab_size * (8 if dtype == torch.float64 else 4)))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others: logits rounded to bfloat16 are off by up to a tenth of a
    nat, and the tail of the log-ratio would measure that rounding."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Projection:
    """A head's matrix made ready for products: trimmed to the vocabulary and, where it must be, widened once.

    Args:
        head: the head; its tensors are read here and never written.
        max_rows: the most rows one call brings; a buffer for their logits is kept.
    """

    def __init__(self, head: Head, max_rows: int) -> None:
        weight = head.weight.detach()[: head.num_tokens]
        self._bias = None if head.bias is None else head.bias.detach()[: head.num_tokens]
        self.wide = accumulation_dtype(weight.dtype)
        # Tensor cores multiply halves into float32; a CPU needs the matrix in float32.
        self._in_halves = weight.dtype != self.wide and weight.is_cuda
        self._weight = weight if self._in_halves else weight.to(self.wide)
        if self._bias is not None:
            self._bias = self._bias.to(self.wide)
        self._scale, self._cap = head.scale, head.softcap
        self._buffer = None if self._in_halves else weight.new_empty((max_rows, weight.shape[0]), dtype=self.wide)

    def logits(self, rows: Tensor) -> Tensor:
        """``[n, V]`` in the accumulation dtype; valid until the next call."""
        if self._buffer is None:
            out = torch.mm(rows, self._weight.T, out_dtype=self.wide)
        else:
            out = torch.mm(rows.to(self.wide), self._weight.T, out=self._buffer[: len(rows)])
        if self._bias is not None:
            out.add_(self._bias)
        if self._scale != 1.0:
            out.mul_(self._scale)
        if self._cap is not None:
            out.div_(self._cap).tanh_().mul_(self._cap)
        return out

    def grad_rows(self, grad: Tensor, row_scale: Tensor | None) -> Tensor:
        """Gradient of the hidden rows ``[n, d]`` from that of the uncapped logits ``[n, V]``; ``row_scale [n]``
        multiplies whole rows."""
        factor = self._factor(row_scale)
        if self._in_halves:
            return torch.mm(grad.to(self._weight.dtype), self._weight, out_dtype=self.wide).mul_(factor)
        return torch.mm(grad, self._weight).mul_(factor)

    def add_grad_weight(self, total: Tensor, grad: Tensor, rows: Tensor, row_scale: Tensor | None) -> None:
        """Add the gradient of the matrix to ``total [>= V, d]``, kept in the accumulation dtype."""
        scaled = rows.to(self.wide) * self._factor(row_scale)
        part = total[: self._weight.shape[0]]
        if self._in_halves:
            dtype = self._weight.dtype
            part.add_(torch.mm(grad.to(dtype).T, scaled.to(dtype), out_dtype=self.wide))
        else:
            part.addmm_(grad.T, scaled)

    def add_grad_bias(self, total: Tensor, grad: Tensor, row_scale: Tensor | None) -> None:
        """Add the gradient of the bias to ``total [>= V]``."""
        ones = grad.new_full((len(grad), 1), 1.0) * self._factor(row_scale)
        total[: self._weight.shape[0]].addmv_(grad.T, ones.squeeze(-1))

    def _factor(self, row_scale: Tensor | None) -> Tensor | float:
        return self._scale if row_scale is None else (row_scale * self._scale).unsqueeze(-1)


def select_rows(hidden: Tensor, head: Head, labels: Tensor, mask: Tensor) -> Rows:
    """The rows under the mask.

    Raises:
        RiskError: when hidden states, head, labels and mask do not fit each other.
    """
    if hidden.ndim != 3 or labels.shape != mask.shape or hidden.shape[:2] != mask.shape:
        raise RiskError(
            f"hidden {tuple(hidden.shape)}, labels {tuple(labels.shape)} and mask {tuple(mask.shape)} do not agree: "
            "give [B, T, d], [B, T] and [B, T]"
        )
    if mask.dtype != torch.bool:
        raise RiskError(f"mask has dtype {mask.dtype}: give booleans, true on response positions")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise RiskError(f"labels have dtype {labels.dtype}: give token ids as integers")
    _check_head("policy", head, hidden)
    if labels.dtype not in (torch.int32, torch.int64):
        raise RiskError(f"labels have dtype {labels.dtype}: give token ids as int64 or int32")
    selected = labels[mask]
    if len(selected) and not 0 <= int(selected.min()) <= int(selected.max()) < head.num_tokens:
        raise RiskError(
            f"labels hold the token {int(selected.max() if selected.min() >= 0 else selected.min())} under the mask, "
            f"outside the vocabulary of {head.num_tokens}: mask it out, or raise the head's vocab_size"
        )
    return Rows(hidden[mask], selected, mask.nonzero()[:, 0])


def check_reference(reference: Reference, rows: Rows, head: Head, num_sequences: int) -> None:
    """Refuse a record that does not fit the rows or the policy's vocabulary.

    Raises:
        RiskError: naming the tensor, both sizes and the remedy.
    """
    count = len(rows.hidden)
    if isinstance(reference, ScalarReference):
        if reference.logps.shape != (num_sequences,):
            raise RiskError(
                f"the reference's logps have shape {tuple(reference.logps.shape)}, expected ({num_sequences},): "
                "one number a sequence"
            )
        return
    if isinstance(reference, TopKReference):
        ids, log_probs = reference.ids, reference.log_probs
        single = (reference.log_rest, reference.label_logps)
        fits = ids.ndim == 2 and len(ids) == count and all(column.shape == (count,) for column in single)
        if not fits or log_probs.shape != ids.shape:
            raise RiskError(
                f"the reference's top-k record has ids {tuple(ids.shape)}, log_probs {tuple(log_probs.shape)}, "
                f"log_rest {tuple(reference.log_rest.shape)} and label_logps {tuple(reference.label_logps.shape)}; "
                f"the mask has {count} positions: give one row a position"
            )
        if ids.dtype not in (torch.int32, torch.int64):
            raise RiskError(f"the reference's top-k ids have dtype {ids.dtype}: give token ids as int64 or int32")
        left_out = (ids == NO_TOKEN) & (log_probs == -torch.inf)
        left_out[:, :1] = False
        tokens = ids.masked_fill(left_out, 0)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < head.num_tokens:
            token = int(tokens.max() if tokens.min() >= 0 else tokens.min())
            raise RiskError(
                f"the reference's top-k record holds the token {token}, outside the policy's vocabulary of "
                f"{head.num_tokens}: reference and policy must share one tokenizer"
            )
        return
    if reference.hidden.ndim != 2:
        raise RiskError(
            f"the reference's hidden states have shape {tuple(reference.hidden.shape)}: give [N, d], one row a position"
        )
    if len(reference.hidden) != count:
        raise RiskError(
            f"the reference's hidden states have {len(reference.hidden)} rows, the mask has {count} positions: "
            "give one row a position, in (sequence, position) order"
        )
    _check_head("reference", reference.head, reference.hidden)
    if accumulation_dtype(reference.hidden.dtype) != accumulation_dtype(rows.hidden.dtype):
        raise RiskError(
            f"the reference's hidden states are {reference.hidden.dtype} and the policy's {rows.hidden.dtype}: "
            "convert both to float64, or neither"
        )
    if reference.head.num_tokens != head.num_tokens:
        raise RiskError(
            f"policy and reference have different vocabularies, {head.num_tokens} and {reference.head.num_tokens} "
            "entries: use models with one tokenizer, or set vocab_size of the padded head to the smaller"
        )


def _check_head(whose: str, head: Head, hidden: Tensor) -> None:
    if head.weight.ndim != 2:
        raise RiskError(f"the {whose} head's weight has shape {tuple(head.weight.shape)}: give [V, d]")
    num_rows, width = head.weight.shape
    if hidden.shape[-1] != width:
        raise RiskError(
            f"the {whose}'s hidden states have {hidden.shape[-1]} columns and its head's weight has {width}: "
            "the head must be the one of the model that gave the hidden states"
        )
    if hidden.dtype != head.weight.dtype:
        raise RiskError(
            f"the {whose}'s hidden states are {hidden.dtype} and its head's weight is {head.weight.dtype}: "
            "convert one to the other's dtype"
        )
    if head.bias is not None and head.bias.shape != (num_rows,):
        raise RiskError(f"the {whose} head's bias has shape {tuple(head.bias.shape)}, expected ({num_rows},)")
    if not 0 < head.num_tokens <= num_rows:
        raise RiskError(f"the {whose} head's vocab_size is {head.num_tokens}; its weight has {num_rows} rows")


def _is_broken(head: Head) -> bool:
    """Whether a head holds numbers that no mask explains (-inf in a bias takes a token out of the vocabulary)."""
    return not bool(torch.isfinite(head.weight).all()) or (head.bias is not None and bool(torch.isnan(head.bias).any()))


def explain_not_finite(rows: Rows, head: Head, reference: Reference | None) -> RiskError:
    """Which tensor is to blame for scores that are not finite."""

    def bad_rows(tensor: Tensor) -> Tensor:
        return (~torch.isfinite(tensor)).flatten(1).any(-1).nonzero()[:, 0]

    policy = bad_rows(rows.hidden)
    if len(policy):
        sequence = int(rows.sequence[policy[0]])
        return RiskError(
            f"the policy's hidden states are not finite at {len(policy)} of {len(rows.hidden)} positions, first in "
            f"sequence {sequence}: training diverged (lower the learning rate) or the model overflows its dtype"
        )
    if _is_broken(head):
        return RiskError("the policy head's weight or bias is not finite: training diverged; lower the learning rate")
    if isinstance(reference, HiddenReference):
        if len(bad_rows(reference.hidden)) or _is_broken(reference.head):
            return RiskError("the reference's hidden states or head are not finite: compute the reference again")
        size = head.num_tokens
        if head.bias is not None:
            masked = torch.isneginf(head.bias[:size])
            if reference.head.bias is not None:
                masked &= ~torch.isneginf(reference.head.bias[:size])
            if bool(masked.any()):
                return RiskError(
                    f"the policy head's bias masks token {int(masked.nonzero()[0])} (-inf) and the reference's does "
                    "not: the risk is infinite; mask it in both, or in neither"
                )
    elif isinstance(reference, ScalarReference):
        if not bool(torch.isfinite(reference.logps).all()):
            return RiskError("the reference's logps are not finite: compute the reference again")
    elif reference is not None and (
        not bool(torch.isfinite(reference.label_logps).all())
        or any(bool(torch.isnan(column).any()) for column in (reference.log_probs, reference.log_rest))
    ):
        return RiskError("the reference's top-k record is not finite: compute the reference again")
    return RiskError(
        "the log-probability of a response or its risk is not finite: a token has probability zero under one model "
        "and not under the other; check masks in the heads' biases, and that training has not diverged"
    )
