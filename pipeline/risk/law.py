"""The law of the per-token log-ratio under the reference: what a risk measure is a function of."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Law:
    """A random variable L at N positions; entry z of a row has probability pi_ref(z).

    Attributes:
        ratio: ``[N, V]`` values of L, nats; 0 where the reference gives no mass (0 * inf must not become NaN).
        log_p: ``[N, V]`` log pi_ref, normalised over the last axis; -inf marks a masked entry.
        p: ``[N, V]`` exp(log_p).
    """

    def __init__(self, ratio: Tensor, log_p: Tensor, p: Tensor | None = None) -> None:
        self.ratio, self.log_p = ratio, log_p
        self.p = log_p.exp() if p is None else p

    @classmethod
    def between(cls, log_ref: Tensor, log_pi: Tensor) -> Law:
        """L = log pi_ref - log pi from normalised log-probabilities, both ``[N, V]``."""
        return cls((log_ref - log_pi).masked_fill_(log_ref == -torch.inf, 0.0), log_ref)

    @cached_property
    def mean(self) -> Tensor:
        """E[L] = KL(pi_ref || pi), ``[N]``."""
        return (self.p * self.ratio).sum(-1)

    def only(self, rows: Tensor) -> Law:
        """The law at some of the positions (``rows``: indices or a mask)."""
        return Law(self.ratio[rows], self.log_p[rows], self.p[rows])


TIE = 1e-5
"""Entries within TIE * (1 + |VaR|) of the VaR count as tied with it."""


class Risk(NamedTuple):
    """What a measure says of a law."""

    value: Tensor
    """``[N]``, nats."""
    q: Tensor
    """``[N, V]``; the gradient of the value with respect to the policy's logits is (sum q) * pi - q."""
