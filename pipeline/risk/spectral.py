"""Spectral risk measures, each given by its distortion of tail masses (Wang 1996; Acerbi 2002).

A distortion g maps the mass u of an upper tail to the weight that tail gets: g(0) = 0, g(1) = 1, rising and
concave (its derivative is the spectrum, the weight function of the quantiles). The measure is

    Phi(L) = sum over entries, worst first, of L * (g(S) - g(S - p)),   S = mass down to and with the entry,

which is the integral of the quantile function against g. CVaR is g(u) = min(u / level, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import RiskError
from pipeline.plugins import load_function
from pipeline.risk.law import TIE, Law, Risk

Distortion = Callable[[Tensor], Tensor]
"""From the logarithms of masses: a proportional hazard of level 0.01 gives a mass of 1e-300 the weight 0.001."""


def wang(log_mass: Tensor, level: float) -> Tensor:
    """Wang's distortion Phi(Phi^-1(u) + level) of u = exp(log_mass)."""
    return torch.special.ndtr(torch.special.ndtri(log_mass.exp()) + level)


def proportional_hazard(log_mass: Tensor, level: float) -> Tensor:
    """u ** level of u = exp(log_mass)."""
    return (level * log_mass).exp()


@functools.cache
def own_distortion(name: str) -> Distortion:
    """The distortion ``module:function``: from masses in [0, 1] (a float64 tensor) to weights in [0, 1].

    Raises:
        RiskError: when it cannot be loaded, or is not a distortion: g(0) = 0, g(1) = 1, rising and concave.
    """
    function = load_function("risk.measure", name, RiskError)

    def distortion(log_mass: Tensor) -> Tensor:
        mass = log_mass.exp()
        try:
            weights = torch.as_tensor(function(mass), dtype=torch.float64, device=mass.device)
        except Exception as error:
            raise RiskError(
                f"risk.measure {name!r} failed with {type(error).__name__}: {error}. "
                "It is called with a float64 tensor of masses in [0, 1] and returns as many weights"
            ) from error
        if weights.shape != mass.shape:
            raise RiskError(
                f"risk.measure {name!r} must return one weight a mass, in the same shape: "
                f"got {tuple(weights.shape)} for {tuple(mass.shape)}"
            )
        return weights

    grid = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    weights = distortion(grid.log().repeat(2, 1))[0]
    if not bool(torch.isfinite(weights).all()):
        raise RiskError(f"risk.measure {name!r} must return finite weights")
    steps = weights.diff()
    if weights[0].abs() > 1e-9 or (weights[-1] - 1).abs() > 1e-9:
        raise RiskError(
            f"risk.measure {name!r} gives mass 0 the weight {weights[0]:g} and mass 1 the weight {weights[-1]:g}: "
            "a distortion maps 0 to 0 and 1 to 1"
        )
    if bool((steps < -1e-9).any()) or bool((steps.diff() > 1e-9).any()):
        raise RiskError(
            f"risk.measure {name!r} is not rising and concave: a distortion gives the worst masses the most weight"
        )
    return distortion


def distorted_risk(law: Law, distortion: Distortion) -> Risk:
    """The spectral measure with a distortion g, which maps logarithms of masses (float64, at most 0) to [0, 1].

    q gives entries with (nearly) equal L the weight of their group in proportion to pi_ref. Groups are cells of
    width TIE * (1 + |L|) centred on 0, so that at pi = pi_ref all of L is one group and q = pi_ref. It takes a
    sort, in float64: masses of 10^5 entries are summed and differenced.
    """
    ratio, order = law.ratio.sort(-1, descending=True)
    log_p = law.log_p.gather(-1, order).double()
    log_mass = log_p.logcumsumexp(-1)
    log_mass = (log_mass - log_mass[:, -1:]).clamp_max_(0.0)
    weight = torch.diff(distortion(log_mass), dim=-1, prepend=torch.zeros_like(log_mass[:, :1]))
    # An entry without mass gets none, also when it stands between equal masses that rounding made unequal.
    weight = torch.where(log_p > -torch.inf, weight, 0.0)
    wide = ratio.double()
    value = (weight * wide).sum(-1)
    cell = torch.round(wide.sign() * torch.log1p(wide.abs()) / TIE)
    # Neighbours are compared, not subtracted: inf - inf would open a group more than there are entries.
    group = F.pad(torch.cumsum(cell[:, 1:] != cell[:, :-1], -1), (1, 0))
    # Shares of each group in proportion to pi_ref, whose exponentials may all underflow: relative to the largest.
    largest = torch.full_like(log_p, -torch.inf).scatter_reduce_(-1, group, log_p, "amax").gather(-1, group)
    relative = torch.where(log_p > -torch.inf, log_p - largest, -torch.inf).exp_()
    group_weight, group_mass = (
        torch.zeros_like(log_p).scatter_add_(-1, group, column).gather(-1, group) for column in (weight, relative)
    )
    sorted_q = torch.where(relative > 0, group_weight * relative / group_mass, 0.0)
    q = torch.empty_like(law.p).scatter_(-1, order, sorted_q.to(law.p.dtype))
    return Risk(value.to(law.p.dtype), q)
