"""Spectral risk measures, each given by its distortion of tail masses (Wang 1996; Acerbi 2002).

A distortion g maps the mass u of an upper tail to the weight that tail gets: g(0) = 0, g(1) = 1, rising and
concave (its derivative is the spectrum, the weight function of the quantiles). The measure is

    Phi(L) = sum over entries, worst first, of L * (g(S) - g(S - p)),   S = mass down to and with the entry,

which is the integral of the quantile function against g. CVaR is g(u) = min(u / level, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.risk.law import TIE, Law, Risk

Distortion = Callable[[Tensor], Tensor]


def wang(mass: Tensor, level: float) -> Tensor:
    """Wang's distortion Phi(Phi^-1(u) + level)."""
    return torch.special.ndtr(torch.special.ndtri(mass) + level)


def distorted_risk(law: Law, distortion: Distortion) -> Risk:
    """The spectral measure with a distortion g, which maps masses in [0, 1] (float64) to [0, 1].

    q gives entries with (nearly) equal L the weight of their group in proportion to pi_ref. Groups are cells of
    width TIE * (1 + |L|) centred on 0, so that at pi = pi_ref all of L is one group and q = pi_ref. It takes a
    sort, in float64: masses of 10^5 entries are summed and differenced.
    """
    ratio, order = law.ratio.sort(-1, descending=True)
    p = law.p.gather(-1, order).double()
    mass = p.cumsum(-1)
    mass = (mass / mass[:, -1:]).clamp_(0.0, 1.0)
    weight = torch.diff(distortion(mass), dim=-1, prepend=torch.zeros_like(mass[:, :1]))
    # An entry without mass gets none, also when it stands between equal masses that rounding made unequal.
    weight = torch.where(p > 0, weight, 0.0)
    wide = ratio.double()
    value = (weight * wide).sum(-1)
    cell = torch.round(wide.sign() * torch.log1p(wide.abs()) / TIE)
    group = torch.cumsum(torch.diff(cell, dim=-1, prepend=cell[:, :1]) != 0, -1)
    group_weight, group_mass = (torch.zeros_like(p).scatter_add_(-1, group, column) for column in (weight, p))
    share = torch.where(group_mass > 0, group_weight / group_mass, 0.0)
    q = torch.empty_like(law.p).scatter_(-1, order, (p * share.gather(-1, group)).to(law.p.dtype))
    return Risk(value.to(law.p.dtype), q)
