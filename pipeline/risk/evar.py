"""Entropic value at risk (Ahmadi-Javid 2012): the tightest bound on CVaR that exponential moments give."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.risk.law import TIE, Law, Risk

_MAX_STEPS = 200


def evar(law: Law, level: float) -> Risk:
    """inf over t > 0 of (log E[exp(t L)] - log level) / t; ``level`` in (0, 1], 1 is the mean.

    Dual form: the largest <q, L> over all q with KL(q || pi_ref) <= -log(level). The maximiser is the tilted law
    q_t = softmax(log pi_ref + t L) whose divergence meets the bound, or, when the maximum of L has mass ``level``
    or more, pi_ref restricted to where L is maximal. Computed in float64.
    """
    if level == 1.0:
        return Risk(law.mean, law.p)
    # Normalised anew: the bound of the divergence can be smaller than what float32 leaves of the normalisation.
    log_p, ratio = law.log_p.double().log_softmax(-1), law.ratio.double()
    top = ratio.masked_fill(log_p == -torch.inf, -torch.inf).amax(-1, keepdim=True)
    below = torch.where(log_p == -torch.inf, 0.0, ratio - top)  # <= 0: exponents never overflow
    log_top = torch.logsumexp(log_p.masked_fill((below < 0) | (log_p == -torch.inf), -torch.inf), -1)
    q, value = _tilt(below, log_p, -math.log(level), at_infinity=log_top >= math.log(level))
    nearly_top = log_p.masked_fill(below < -TIE * (1 + top.abs()), -torch.inf)
    tied = torch.logsumexp(nearly_top, -1) >= math.log(level)
    q = torch.where(tied.unsqueeze(-1), torch.softmax(nearly_top, -1), q)
    return Risk((top.squeeze(-1) + value).to(law.p.dtype), q.to(law.p.dtype))


def _tilt(below: Tensor, log_p: Tensor, bound: float, at_infinity: Tensor) -> tuple[Tensor, Tensor]:
    """q_t with KL(q_t || p) = bound and <q_t, below>, for ``below`` <= 0 with maximum 0 in each row.

    The divergence rises with t from 0 to -log P(L is maximal), with derivative t * Var_t(L): Newton's method in
    log t, kept inside a bracket. Rows ``at_infinity`` never reach the bound: their infimum is 0, the maximum of L.
    """
    p = log_p.exp()
    mean = (p * below).sum(-1)
    variance = (p * (below - mean.unsqueeze(-1)).square()).sum(-1)
    log_t = torch.log(math.sqrt(2 * bound) / variance.sqrt().clamp_min(1e-150)).clamp(-300.0, 300.0)
    low, high = torch.full_like(log_t, -320.0), torch.full_like(log_t, 320.0)
    value = torch.zeros_like(log_t)  # L's maximum bounds it
    q = p
    for _ in range(_MAX_STEPS):
        t = log_t.exp()
        tilted = log_p + t.unsqueeze(-1) * below
        log_partition = torch.logsumexp(tilted, -1)
        q = (tilted - log_partition.unsqueeze(-1)).exp()
        mean = (q * below).sum(-1)
        excess = t * mean - log_partition - bound
        # (log E exp(t L) + bound) / t at this t: any t gives an upper bound of the infimum.
        value = torch.minimum(value, mean - excess / t)
        low, high = torch.where(excess < 0, log_t, low), torch.where(excess < 0, high, log_t)
        slope = t.square() * (q * (below - mean.unsqueeze(-1)).square()).sum(-1)  # d KL / d log t
        step = (log_t - excess / slope.clamp_min(1e-300)).clamp(log_t - 3.0, log_t + 3.0)
        following = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
        moved = (following - log_t).abs()
        log_t = following
        if bool(((excess.abs() <= 1e-13 * (1 + bound)) | (moved <= 1e-12) | at_infinity).all()):
            break
    return q, value.masked_fill(at_infinity, 0.0)
