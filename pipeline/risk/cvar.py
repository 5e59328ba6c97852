"""Conditional value at risk without sorting the vocabulary (Rockafellar & Uryasev 2000).

CVaR_level(L) is the minimum over c of f(c) = c + E[(L - c)+] / level; its smallest minimiser is the VaR, the
smallest c with P(L > c) <= level. P(L > c) falls from 1 to 0 in steps, one for each entry, so the VaR is a root:
a bracket is narrowed, by false position first, until a few entries in a thousand are left inside, and only those
are put in order, which makes the result exact. Each step is one comparison and one weighted sum over the
vocabulary; a sort of 50,000 entries costs more than five products of the output head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.risk.law import TIE, Law, Risk

_MAX_STEPS = 100
"""More than the halvings between values of 1e4 and a point in float64; without an end in sight all is put in order."""
_STEPS_UNTIL_CHECK = 4
"""Steps before the first look at how many entries are left inside; a look waits for the device."""
_BISECT_FROM = 6
"""From this step on the bracket is halved instead: by then false position has found the root of a smooth law, and
where a few entries hold all mass, or values lie orders of magnitude apart, it is slower than halving."""
_FEW = 1 / 256
"""Share of the entries that may be left inside when they are put in order."""


def cvar(law: Law, level: float) -> Risk:
    """Mean of the upper ``level`` mass of L, the atom at the VaR split so that the mass is exact.

    ``level`` in (0, 1]; 1 is the mean. q is pi_ref above the VaR and the tied entries' share of pi_ref at it, both
    divided by ``level``: 0 <= q <= pi_ref / level, sum q = 1, <q, L> = value.
    """
    if level == 1.0:
        return Risk(law.mean, law.p)
    ratio, p = law.ratio, law.p
    var = value_at_risk(law, level).unsqueeze(-1)
    excess = torch.sub(ratio, var, out=law.buffer("scratch")).clamp_min_(0.0)
    value = var.squeeze(-1) + excess.mul_(p).sum(-1) / level
    tie = TIE * (1 + var.abs())
    above = torch.gt(ratio, var + tie, out=law.buffer("above")).mul_(p)
    at_least = torch.gt(ratio, var - tie, out=law.buffer("scratch")).mul_(p)
    # The tied entries share what those above them leave of the level.
    above_mass, at_least_mass = above.sum(-1, keepdim=True), at_least.sum(-1, keepdim=True)
    share = ((level - above_mass) / (at_least_mass - above_mass)).nan_to_num(0.0, 0.0, 0.0).clamp_(0.0, 1.0)
    # The mass of the tail: `level`, but for rounding.
    mass = torch.lerp(above_mass, at_least_mass, share)
    return Risk(value, above.mul_((1 - share) / mass).addcmul_(at_least, share / mass))


@dataclass
class _Bracket:
    """Both ends of the interval (low, high] that holds the VaR of each row.

    ``low`` and ``high`` ``[3, n]``: the end, how far P(L > end) misses the level, and how many entries lie above it.
    The miss is on the scale on which a normal law is a straight line: there false position hits its root at once.
    """

    low: Tensor
    high: Tensor
    mass_high: Tensor

    @classmethod
    def around(cls, ratio: Tensor, level: float) -> _Bracket:
        eps, size = torch.finfo(ratio.dtype).eps, ratio.shape[-1]
        target, reach = _probit(level), math.sqrt(2 * math.log(max(size, 2)))
        low, high = ratio.amin(-1), ratio.amax(-1)
        low = low - 4 * eps * (1 + low.abs())
        one = torch.ones_like(low)
        return cls(
            torch.stack([low, min(-reach - target, -1.0) * one, size * one]),
            torch.stack([high, max(reach - target, 1.0) * one, 0.0 * one]),
            0.0 * one,
        )

    def trial(self, bisect: bool) -> Tensor:
        width = self.high[0] - self.low[0]
        if bisect:
            return self.low[0] + 0.5 * width
        where = self.low[1] / (self.low[1] - self.high[1])
        # A little past the root as seen from the nearer end, so that both ends close in.
        where = torch.where(where < 0.5, 1.15 * where + 0.002, 1.15 * where - 0.152).clamp_(0.002, 0.998)
        return torch.addcmul(self.low[0], where, width)

    def is_point(self) -> Tensor:
        """Where the ends are equal but for rounding: all entries inside are tied, however many they are."""
        return self.high[0] - self.low[0] <= 4 * torch.finfo(self.low.dtype).eps * (1e-6 + self.low[0].abs())

    def num_inside(self) -> Tensor:
        """Entries inside, over all rows whose bracket is more than a point."""
        return (self.low[2] - self.high[2]).masked_fill_(self.is_point(), 0.0).sum()


def value_at_risk(law: Law, level: float) -> Tensor:
    """The smallest value of L with P(L > value) <= ``level`` in (0, 1), ``[N]``."""
    ratio, p = law.ratio, law.p
    bracket = _Bracket.around(ratio, level)
    target = _probit(level)
    few = _FEW * ratio.numel() + 32
    last = torch.zeros_like(bracket.mass_high, dtype=torch.bool)
    above, scratch = law.buffer("above"), law.buffer("scratch")
    for step in range(_MAX_STEPS):
        if step >= _STEPS_UNTIL_CHECK and bool(bracket.num_inside() <= few):
            break
        trial = bracket.trial(bisect=step >= _BISECT_FROM)
        torch.gt(ratio, trial.unsqueeze(-1), out=above)
        mass = torch.mul(above, p, out=scratch).sum(-1)
        miss = torch.special.ndtri((1 - mass).clamp_(1e-6, 1 - 1e-6)) - target
        is_left = mass > level
        if step:
            # Illinois: an end that stays for two steps counts half, so that it moves too.
            stays = torch.where(is_left == last, 0.5, 1.0)
            bracket.low[1] *= stays
            bracket.high[1] *= stays
        last = is_left
        miss = torch.where(is_left, miss.clamp_max(-1e-4), miss.clamp_min(1e-4))
        end = torch.stack([trial, miss, above.sum(-1)])
        bracket.low = torch.where(is_left, end, bracket.low)
        bracket.high = torch.where(is_left, bracket.high, end)
        bracket.mass_high = torch.where(is_left, bracket.mass_high, mass)
    low = torch.where(bracket.is_point(), bracket.high[0], bracket.low[0])
    return _root_inside(law, low, bracket.high[0], bracket.mass_high, level)


def _probit(level: float) -> float:
    """The standard normal quantile of 1 - level."""
    return torch.special.ndtri(torch.tensor(1 - level, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)).item()


def _root_inside(law: Law, low: Tensor, high: Tensor, mass_high: Tensor, level: float) -> Tensor:
    """The VaR among the entries of each row inside (low, high], put in order; ``high`` where there are none."""
    ratio, size = law.ratio, law.ratio.shape[-1]
    inside = torch.gt(ratio, low.unsqueeze(-1), out=law.buffer("above"))
    inside -= torch.gt(ratio, high.unsqueeze(-1), out=law.buffer("scratch"))
    index = _nonzero(inside.flatten())
    values, order = ratio.flatten()[index].sort(descending=True)
    row, by_row = (index[order] // size).sort(stable=True)
    values, index = values[by_row], index[order][by_row]
    counts = torch.bincount(row, minlength=len(ratio))
    start = counts.cumsum(0) - counts
    # One running sum over all rows, so in float64; what stood before a row's first entry is taken off.
    running = law.p.flatten()[index].double().cumsum(0)
    before = torch.cat([running.new_zeros(1), running])[start]
    reaches = running - before[row] + mass_high.double()[row] >= level
    # The first entry, from the top, with which the mass reaches the level.
    num_short = torch.bincount(row[~reaches], minlength=len(ratio))
    first = (start + num_short.minimum(counts - 1)).clamp_min_(0)
    var = torch.cat([values, values.new_zeros(1)])[first]
    return torch.where(counts > 0, var, high)


def _nonzero(flat: Tensor) -> Tensor:
    """Indices of the entries that are not zero; on a CPU numpy finds few among many five times as fast."""
    if flat.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flat.bool().numpy()))
    return flat.nonzero().squeeze(-1)
