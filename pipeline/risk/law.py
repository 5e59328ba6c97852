"""The law of the per-token log-ratio under the reference: what a risk measure is a function of."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

TIE = 1e-5
"""Entries within TIE * (1 + |VaR|) of the VaR count as tied with it."""


class Workspace:
    """Named buffers that are written again and again. A fresh buffer of some megabytes is paged in by the system at
    its first use, which takes several times as long as the arithmetic done in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """A buffer of the shape, dtype and device of ``like``; an earlier one of the same name is overwritten."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < like.numel() or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self._buffers[name] = like.new_empty(like.numel())
        return buffer[: like.numel()].view(like.shape)


class Law:
    """A random variable L at N positions; entry z of a row has probability pi_ref(z).

    Attributes:
        ratio: ``[N, V]`` values of L, nats; 0 where the reference gives no mass (0 * inf must not become NaN).
        log_p: ``[N, V]`` log pi_ref, normalised over the last axis; -inf marks a masked entry.
        p: ``[N, V]`` exp(log_p).
    """

    def __init__(
        self, ratio: Tensor, log_p: Tensor, p: Tensor | None = None, workspace: Workspace | None = None
    ) -> None:
        self.ratio, self.log_p = ratio, log_p
        self.p = log_p.exp() if p is None else p
        self._workspace = Workspace() if workspace is None else workspace

    @classmethod
    def between(cls, log_ref: Tensor, log_pi: Tensor) -> Law:
        """L = log pi_ref - log pi from normalised log-probabilities, both ``[N, V]``."""
        return cls((log_ref - log_pi).masked_fill_(log_ref == -torch.inf, 0.0), log_ref)

    @cached_property
    def mean(self) -> Tensor:
        """E[L] = KL(pi_ref || pi), ``[N]``."""
        return torch.mul(self.p, self.ratio, out=self.buffer("scratch")).sum(-1)

    def buffer(self, name: str) -> Tensor:
        """``[N, V]`` of scratch memory."""
        return self._workspace.take(name, self.ratio)


class Risk(NamedTuple):
    """What a measure says of a law."""

    value: Tensor
    """``[N]``, nats."""
    q: Tensor
    """``[N, V]``; the gradient of the value with respect to the policy's logits is (sum q) * pi - q. Valid until
    the next measure of the same law."""
