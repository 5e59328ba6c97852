"""Conditional value at risk without sorting the vocabulary (Rockafellar & Uryasev 2000).

CVaR_level(L) is the minimum over c of f(c) = c + E[(L - c)+] / level; its smallest minimiser is the VaR, the
smallest c with P(L > c) <= level. P(L > c) falls from 1 to 0 in steps, one for each entry, so the VaR is a root:
a bracket is narrowed by false position until fewer than one entry in a hundred is left inside, and only those are
put in order, which makes the result exact. Each step is one comparison and one weighted sum over the vocabulary;
a sort of 50,000 entries costs more than five products of the output head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.risk.law import TIE, Law, Risk

_MAX_STEPS = 80
_STEPS_UNTIL_CHECK = 4
"""Steps before the first look at how many entries are left inside; a look waits for the device."""
_BISECT_EVERY = 6
"""Every so many steps the bracket is halved instead: false position is slow where a few entries hold all mass."""


def cvar(law: Law, level: float) -> Risk:
    """Mean of the upper ``level`` mass of L, the atom at the VaR split so that the mass is exact.

    ``level`` in (0, 1]; 1 is the mean. q is pi_ref above the VaR and the tied entries' share of pi_ref at it, both
    divided by ``level``: 0 <= q <= pi_ref / level, sum q = 1, <q, L> = value.
    """
    if level == 1.0:
        return Risk(law.mean, law.p)
    ratio, p = law.ratio, law.p
    var = value_at_risk(law, level).unsqueeze(-1)
    scratch = torch.sub(ratio, var).clamp_min_(0.0)
    value = var.squeeze(-1) + scratch.mul_(p).sum(-1) / level
    tie = TIE * (1 + var.abs())
    above, at_least = torch.empty_like(p), torch.empty_like(p)
    torch.gt(ratio, var + tie, out=above)
    torch.gt(ratio, var - tie, out=at_least)
    # The tied entries share what those above them leave of the level.
    above_mass, at_least_mass = (torch.mul(side, p, out=scratch).sum(-1, keepdim=True) for side in (above, at_least))
    share = ((level - above_mass) / (at_least_mass - above_mass)).nan_to_num(0.0, 0.0, 0.0).clamp_(0.0, 1.0)
    # The mass of the tail: `level`, but for rounding.
    mass = torch.lerp(above_mass, at_least_mass, share)
    return Risk(value, above.lerp_(at_least, share).mul_(p).div_(mass))


def value_at_risk(law: Law, level: float) -> Tensor:
    """The smallest value of L with P(L > value) <= ``level`` in (0, 1), ``[N]``."""
    ratio, p = law.ratio, law.p
    eps = torch.finfo(ratio.dtype).eps
    size = ratio.shape[-1]
    few = ratio.numel() // 64 + 32
    # The root lies in (low, high]; beside each end stands how P(L > end) misses the level, on the scale on which
    # a normal law is a straight line, for there false position hits the root of one at once.
    target = _probit(torch.tensor(1 - level, dtype=torch.float64)).item()
    reach = math.sqrt(2 * math.log(max(size, 2)))
    low, high = ratio.amin(-1), ratio.amax(-1)
    low = low - 4 * eps * (1 + low.abs())
    miss_low = torch.full_like(low, min(-reach - target, -1.0))
    miss_high = torch.full_like(low, max(reach - target, 1.0))
    count_low, count_high = torch.full_like(low, size), torch.zeros_like(low)
    mass_high = torch.zeros_like(low)
    last_side = torch.zeros_like(low)
    above, scratch = torch.empty_like(p), torch.empty_like(p)
    for step in range(_MAX_STEPS):
        width = high - low
        if step >= _STEPS_UNTIL_CHECK:
            is_point = width <= 4 * eps * (1e-3 + low.abs())
            if bool((count_low - count_high).masked_fill_(is_point, 0.0).sum() <= few):
                break
        where = miss_low / (miss_low - miss_high)
        # A little past the root as seen from the nearer end, so that both ends close in.
        where = torch.where(where < 0.5, 1.15 * where + 0.002, 1.15 * where - 0.152).clamp_(0.002, 0.998)
        trial = low + (0.5 if step % _BISECT_EVERY == _BISECT_EVERY - 1 else where) * width
        torch.gt(ratio, trial.unsqueeze(-1), out=above)
        count = above.sum(-1)
        mass = torch.mul(above, p, out=scratch).sum(-1)
        miss = _probit(1 - mass.double()).to(mass.dtype) - target
        is_left = mass > level
        side = torch.where(is_left, 1.0, -1.0)
        # Illinois: an end that stays for two steps counts half, so that it moves too.
        stays = torch.where(side == last_side, 0.5, 1.0)
        last_side = side
        low, miss_low, count_low, miss_high = (
            torch.where(is_left, new, old)
            for new, old in (
                (trial, low),
                (miss.clamp_max(-1e-4), miss_low * stays),
                (count, count_low),
                (miss_high * stays, miss.clamp_min(1e-4)),
            )
        )
        high, count_high, mass_high = (
            torch.where(is_left, old, new) for new, old in ((trial, high), (count, count_high), (mass, mass_high))
        )
    return _root_inside(ratio, p, low, high, mass_high, level)


def _probit(mass: Tensor) -> Tensor:
    return torch.special.ndtri(mass.clamp(1e-12, 1 - 1e-12))


def _root_inside(ratio: Tensor, p: Tensor, low: Tensor, high: Tensor, mass_high: Tensor, level: float) -> Tensor:
    """The VaR among the entries of each row inside (low, high], put in order."""
    inside = (ratio > low.unsqueeze(-1)).logical_and_(ratio <= high.unsqueeze(-1))
    row, column = inside.nonzero(as_tuple=True)
    values, order = ratio[row, column].sort(descending=True)
    by_row = row[order].argsort(stable=True)
    row, values = row[order][by_row], values[by_row]
    counts = torch.bincount(row, minlength=len(ratio))
    start = counts.cumsum(0) - counts
    # One running sum over all rows, so in float64; what stood before a row's first entry is taken off.
    running = p[row, column[order][by_row]].double().cumsum(0)
    before = torch.cat([running.new_zeros(1), running])[start]
    reaches = running - before[row] + mass_high.double()[row] >= level
    # The first entry, from the top, with which the mass reaches the level.
    num_short = torch.bincount(row[~reaches], minlength=len(ratio))
    index = start + num_short.minimum(counts - 1)
    var = torch.cat([values, values.new_zeros(1)])[index.clamp_min(0)]
    return torch.where(counts > 0, var, high)
