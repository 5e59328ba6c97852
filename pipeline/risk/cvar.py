"""Conditional value at risk without sorting the vocabulary (Rockafellar & Uryasev 2000).

CVaR_level(L) is the minimum over c of f(c) = c + E[(L - c)+] / level; its smallest minimiser is the VaR, the
smallest c with P(L > c) <= level. P(L > c) falls from 1 to 0 in steps, one for each entry, so the VaR is a root:
a bracket is narrowed, by false position first, until a few entries in a thousand are left inside, and only those
are put in order, which makes the result exact. Each step is one comparison and one weighted sum over the
vocabulary; a sort of 50,000 entries costs more than five products of the output head.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from pipeline.risk.law import TIE, Law, Risk

_MAX_STEPS = 100
"""More than the halvings between values of 1e4 and a point in float64; without an end in sight all is put in order."""
_STEPS_UNTIL_CHECK = 4
"""Steps before the first look at how many entries are left inside; a look waits for the device."""
_BISECT_FROM = 6
"""From this step on the bracket is halved instead: by then false position has found the root of a smooth law, and
where a few entries hold all mass, or values lie orders of magnitude apart, it is slower than halving."""
_FEW = 1 / 128
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


class _Bracket:
    """The interval (low, high] that holds the VaR of each row.

    Beside each end stand how far P(L > end) misses the level and how many entries lie above it. The miss is on the
    scale on which a normal law is a straight line: there false position hits its root at once. Vectors of a few
    rows' numbers are numpy's: an operation of torch on them takes as long as one on a thousand times as many.
    """

    def __init__(self, ratio: Tensor, level: float) -> None:
        self._level, self._target = level, -ndtri(level)
        self._dtype, self._eps = ratio.dtype, torch.finfo(ratio.dtype).eps
        self.low, self.high = (end.double().cpu().numpy() for end in (ratio.amin(-1), ratio.amax(-1)))
        self.low = self._round(self.low - 4 * self._eps * (1 + np.abs(self.low)))
        reach = math.sqrt(2 * math.log(max(ratio.shape[-1], 2)))
        self._miss_low = np.full_like(self.low, min(-reach - self._target, -1.0))
        self._miss_high = np.full_like(self.low, max(reach - self._target, 1.0))
        self._count_low, self._count_high = np.full_like(self.low, ratio.shape[-1]), np.zeros_like(self.low)
        self.mass_high = np.zeros_like(self.low)
        self._was_left: np.ndarray | None = None

    def _round(self, values: np.ndarray) -> np.ndarray:
        """To what the dtype of L holds, so that both sides compare the same numbers."""
        return values if self._dtype == torch.float64 else values.astype(np.float32).astype(np.float64)

    def trial(self, bisect: bool) -> np.ndarray:
        """The next point to look at, inside the interval."""
        width = self.high - self.low
        if bisect:
            return self._round(self.low + 0.5 * width)
        where = self._miss_low / (self._miss_low - self._miss_high)
        # A little past the root as seen from the nearer end, so that both ends close in.
        where = np.clip(np.where(where < 0.5, 1.15 * where + 0.002, 1.15 * where - 0.152), 0.002, 0.998)
        return self._round(self.low + where * width)

    def update(self, trial: np.ndarray, mass: np.ndarray, count: np.ndarray) -> None:
        """Move one end of each row to the trial point, above which there are ``mass`` and ``count``."""
        is_left = mass > self._level
        miss = ndtri(np.clip(1 - mass, 1e-12, 1 - 1e-12)) - self._target
        if self._was_left is not None:
            # Illinois: an end that stays for two steps counts half, so that it moves too.
            stays = np.where(is_left == self._was_left, 0.5, 1.0)
            self._miss_low *= stays
            self._miss_high *= stays
        self._was_left = is_left
        self.low, self.high = np.where(is_left, trial, self.low), np.where(is_left, self.high, trial)
        self._miss_low = np.where(is_left, np.minimum(miss, -1e-4), self._miss_low)
        self._miss_high = np.where(is_left, self._miss_high, np.maximum(miss, 1e-4))
        self._count_low = np.where(is_left, count, self._count_low)
        self._count_high = np.where(is_left, self._count_high, count)
        self.mass_high = np.where(is_left, self.mass_high, mass)

    def is_point(self) -> np.ndarray:
        """Where the ends are equal but for rounding: all entries inside are tied, however many they are."""
        return self.high - self.low <= 4 * self._eps * (1e-6 + np.abs(self.low))

    def num_inside(self) -> float:
        """Entries inside, over all rows whose interval is more than a point."""
        return float(np.where(self.is_point(), 0.0, self._count_low - self._count_high).sum())


def value_at_risk(law: Law, level: float) -> Tensor:
    """The smallest value of L with P(L > value) <= ``level`` in (0, 1), ``[N]``."""
    ratio = law.ratio
    bracket = _Bracket(ratio, level)
    few = _FEW * ratio.numel() + 32
    above, scratch = law.buffer("above"), law.buffer("scratch")
    for step in range(_MAX_STEPS):
        if step >= _STEPS_UNTIL_CHECK and bracket.num_inside() <= few:
            break
        trial = bracket.trial(bisect=step >= _BISECT_FROM)
        torch.gt(ratio, _column(trial, ratio), out=above)
        mass = torch.mul(above, law.p, out=scratch).sum(-1)
        bracket.update(trial, mass.double().cpu().numpy(), above.sum(-1).double().cpu().numpy())
    return _root_inside(law, bracket, level)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype).unsqueeze(-1)


def _root_inside(law: Law, bracket: _Bracket, level: float) -> Tensor:
    """The VaR among the entries of each row inside the bracket, put in order; its upper end where it is a point."""
    ratio, size = law.ratio, law.ratio.shape[-1]
    low = np.where(bracket.is_point(), bracket.high, bracket.low)
    inside = torch.gt(ratio, _column(low, ratio), out=law.buffer("above"))
    inside -= torch.gt(ratio, _column(bracket.high, ratio), out=law.buffer("scratch"))
    # Few entries of many rows: numpy finds and orders them several times as fast as torch does on a CPU.
    flat = inside.flatten().bool()
    index = torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero().squeeze(-1)
    values, masses = (column.flatten()[index].cpu().numpy() for column in (ratio, law.p))
    bounds = np.searchsorted(index.cpu().numpy(), np.arange(len(low) + 1) * size)
    var = bracket.high.copy()
    for row, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        order = np.argsort(-values[start:end])
        reached = bracket.mass_high[row] + np.cumsum(masses[start:end][order], dtype=np.float64)
        # The first entry, from the top, with which the mass reaches the level.
        first = min(int(np.searchsorted(reached, level)), end - start - 1)
        var[row] = values[start:end][order[first]]
    return _column(var, ratio).squeeze(-1)
