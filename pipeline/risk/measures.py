"""Risk measures of the per-token log-ratio, each as a value and a distorted reference q.

At one position let L(z) = log pi_ref(z) - log pi(z) over the vocabulary, z ~ pi_ref, in nats. From log pi_ref
and log pi (both ``[N, V]``, normalised log-probabilities, float32 or wider) a measure gives

* ``value [N]``: Phi(L), the upper tail of L (large means: the policy abandons what the reference says);
* ``q [N, V]``: the distorted reference, a probability vector per row, with which the gradient of the value
  with respect to the policy's logits is ``pi - q`` (arXiv 2505.20359; Rockafellar & Uryasev 2000 for CVaR).

Value and q are separate functions, for the forward pass needs one and the backward pass the other. What links
them is one number per position, the *anchor* (the VaR, the maximum, the log-partition): found with the value,
it makes q a single pass over the vocabulary.

Conventions. Entries whose L lies within ``1e-5 * (1 + |VaR|)`` of the VaR (or of the maximum, for worst_case)
are tied and share the remaining mass in proportion to pi_ref, so that q = pi_ref when pi = pi_ref. An entry
with log pi_ref = -inf has weight zero. An entry with log pi = -inf that the reference can produce is infinite
risk: the value is not finite, and the trainer stops on it.

Adding a measure is two functions of a few lines here and one row in `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ValueAndAnchor = tuple[Tensor, Tensor]
ValueFunction = Callable[[Tensor, Tensor, float], ValueAndAnchor]
DistortFunction = Callable[[Tensor, Tensor, float, Tensor], Tensor]

_TIE = 1e-5
_MAX_ROOT_STEPS = 100


def log_ratio(log_ref: Tensor, log_pi: Tensor) -> Tensor:
    """L = log pi_ref - log pi ``[N, V]``, and 0 where the reference gives no mass (0 * inf must not be NaN)."""
    return (log_ref - log_pi).masked_fill_(log_ref == -torch.inf, 0.0)


def mean_value(log_ref: Tensor, log_pi: Tensor, level: float) -> ValueAndAnchor:
    """E[L] = KL(pi_ref || pi); ``level`` is not used."""
    value = (log_ref.exp() * log_ratio(log_ref, log_pi)).sum(-1)
    return value, value


def mean_distorted(log_ref: Tensor, log_pi: Tensor, level: float, anchor: Tensor) -> Tensor:
    """pi_ref itself."""
    return log_ref.exp()


def cvar_value(log_ref: Tensor, log_pi: Tensor, level: float) -> ValueAndAnchor:
    """Mean of the upper ``level`` mass of L, the atom at the VaR split so that the mass is exact.

    ``level`` in (0, 1]; 1 is the mean. No sort: the value is min over c of c + E[(L - c)+] / level, and the
    anchor, the minimiser, is the VaR.
    """
    if level == 1.0:
        return mean_value(log_ref, log_pi, level)
    var, value = _rockafellar_uryasev(log_ratio(log_ref, log_pi), log_ref.exp(), level)
    return value, var


def cvar_distorted(log_ref: Tensor, log_pi: Tensor, level: float, anchor: Tensor) -> Tensor:
    """pi_ref restricted to the tail above the VaR and divided by ``level``; ties share what is left."""
    p = log_ref.exp()
    if level == 1.0:
        return p
    ratio, edge = log_ratio(log_ref, log_pi), anchor.unsqueeze(-1)
    tie = _TIE * (1 + edge.abs())
    # The comparisons of the search, so that rounding cannot leave an atom neither above nor tied.
    is_above = ratio > edge + tie
    above = torch.where(is_above, p, 0.0)
    tied = torch.where((ratio > edge - tie) & ~is_above, p, 0.0)
    above_mass, tied_mass = above.sum(-1, keepdim=True), tied.sum(-1, keepdim=True)
    share = ((level - above_mass) / tied_mass).nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
    q = torch.addcmul(above, share, tied)
    # Where the tail ends between two atoms nothing is tied and rounding may leave a sum of 1 +- 1e-6.
    return q / q.sum(-1, keepdim=True)


def erm_value(log_ref: Tensor, log_pi: Tensor, level: float) -> ValueAndAnchor:
    """Entropic risk (1/level) log E[exp(level * L)], ``level`` > 0: the Renyi divergence of order 1 + level."""
    scaled = level * log_ratio(log_ref, log_pi)
    value = torch.logsumexp(log_ref + scaled, -1)
    # Near zero log E[exp(.)] loses all its digits to rounding, and dividing by a small level would show it.
    small = scaled.abs().amax(-1) < 0.5
    near_zero = torch.log1p((log_ref.exp() * torch.expm1(scaled.clamp(-1.0, 1.0))).sum(-1))
    value = torch.where(small, near_zero, value)
    return value / level, value


def erm_distorted(log_ref: Tensor, log_pi: Tensor, level: float, anchor: Tensor) -> Tensor:
    """softmax(log pi_ref + level * L)."""
    return torch.exp(log_ref + level * log_ratio(log_ref, log_pi) - anchor.unsqueeze(-1))


def worst_case_value(log_ref: Tensor, log_pi: Tensor, level: float) -> ValueAndAnchor:
    """max L over the reference's support, the limit of CVaR for level -> 0; ``level`` is not used."""
    value = torch.where(log_ref == -torch.inf, -torch.inf, log_ref - log_pi).amax(-1)
    return value, value


def worst_case_distorted(log_ref: Tensor, log_pi: Tensor, level: float, anchor: Tensor) -> Tensor:
    """pi_ref restricted to where L is maximal, normalised."""
    edge = anchor.unsqueeze(-1)
    at_maximum = log_ratio(log_ref, log_pi) >= edge - _TIE * (1 + edge.abs())
    return torch.softmax(torch.where(at_maximum, log_ref, -torch.inf), -1)


def _rockafellar_uryasev(ratio: Tensor, p: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Minimiser (the VaR, to within a tie) and minimum of f(c) = c + E[(L - c)+] / level, both ``[N]``.

    f is convex and piecewise linear with right slope 1 - P(L > c) / level. Tangents at both ends of a bracket
    bound it from below; where they cross is the next trial point. A row is done when f meets that bound (the
    minimum is found) and the atoms tied with the trial point hold the mass at which the tail begins (the
    minimiser is found). Every eighth step halves the bracket, so that the worst case is that of bisection.
    """
    var, minimum = torch.empty_like(ratio[:, 0]), torch.empty_like(ratio[:, 0])
    # Rows still searched. Most need about seven passes over [N, V] and a few need thirty, so finished rows leave.
    row = torch.arange(ratio.shape[0], device=ratio.device)
    search = _Search(ratio, p, level)
    low, high = ratio.amin(-1), ratio.amax(-1)
    f_low, slope_low = search.evaluate(low)
    f_high, slope_high = high.clone(), torch.ones_like(high)
    # The lowest atom alone may reach into the tail: then it is the VaR.
    done, best, f_best = slope_low >= 0, low, f_low
    for step in range(_MAX_ROOT_STEPS):
        last = step == _MAX_ROOT_STEPS - 1
        narrow = ~done & ((high - low <= 1e-7 * (1 + low.abs())) | last)
        best, f_best = torch.where(narrow, high, best), torch.where(narrow, f_high, f_best)
        done = done | narrow
        if 2 * int(done.sum()) >= len(row):
            var[row], minimum[row] = best, f_best
            if bool(done.all()):
                break
            row, low, high, f_low, f_high, slope_low, slope_high, best, f_best = (
                column[~done] for column in (row, low, high, f_low, f_high, slope_low, slope_high, best, f_best)
            )
            search = search.only(~done)
            done = torch.zeros_like(row, dtype=torch.bool)
        width = high - low
        crossing = low + (f_high - f_low - slope_high * width) / (slope_low - slope_high)
        usable = (crossing > low) & (crossing < high)
        if step % 8 == 7:
            usable = torch.zeros_like(usable)
        trial = torch.where(usable, crossing, low + 0.5 * width)
        f_trial, slope_trial = search.evaluate(trial)
        found = ~done & usable & (f_trial <= f_low + slope_low * (trial - low) + 1e-7 * (1 + f_trial.abs()))
        if bool(found.any()):
            tie = _TIE * (1 + trial.abs())
            found = found & (search.mass_above(trial + tie) <= level) & (search.mass_above(trial - tie) >= level)
            best, f_best = torch.where(found, trial, best), torch.where(found, f_trial, f_best)
            done = done | found
        left = slope_trial < 0
        low, f_low, slope_low = (
            torch.where(left, new, old) for new, old in ((trial, low), (f_trial, f_low), (slope_trial, slope_low))
        )
        high, f_high, slope_high = (
            torch.where(left, old, new) for new, old in ((trial, high), (f_trial, f_high), (slope_trial, slope_high))
        )
    return var, minimum


class _Search:
    """Evaluates f and its slope; two buffers are written in place, for these passes are all that CVaR costs."""

    def __init__(self, ratio: Tensor, p: Tensor, level: float) -> None:
        self._ratio, self._p, self._level = ratio, p, level
        self._excess, self._product = torch.empty_like(ratio), torch.empty_like(ratio)

    def only(self, rows: Tensor) -> _Search:
        return _Search(self._ratio[rows], self._p[rows], self._level)

    def evaluate(self, c: Tensor) -> tuple[Tensor, Tensor]:
        torch.sub(self._ratio, c.unsqueeze(-1), out=self._excess).clamp_min_(0.0)
        f = c + torch.mul(self._excess, self._p, out=self._product).sum(-1) / self._level
        return f, 1 - torch.mul(self._excess.sign_(), self._p, out=self._product).sum(-1) / self._level

    def mass_above(self, c: Tensor) -> Tensor:
        torch.gt(self._ratio, c.unsqueeze(-1), out=self._excess)
        return torch.mul(self._excess, self._p, out=self._product).sum(-1)


MEASURES: dict[str, tuple[ValueFunction, DistortFunction]] = {
    "mean": (mean_value, mean_distorted),
    "cvar": (cvar_value, cvar_distorted),
    "erm": (erm_value, erm_distorted),
    "worst_case": (worst_case_value, worst_case_distorted),
}


@dataclass(frozen=True)
class Measure:
    """A measure with its level."""

    name: str
    level: float

    def __post_init__(self) -> None:
        if self.name not in MEASURES:
            raise ValueError(f"unknown risk measure {self.name!r}: choose one of {', '.join(MEASURES)}")

    def value(self, log_ref: Tensor, log_pi: Tensor) -> ValueAndAnchor:
        """Phi(L) ``[N]`` and the anchor ``[N]`` that `distorted` takes."""
        return MEASURES[self.name][0](log_ref, log_pi, self.level)

    def distorted(self, log_ref: Tensor, log_pi: Tensor, anchor: Tensor) -> Tensor:
        """q ``[N, V]``."""
        return MEASURES[self.name][1](log_ref, log_pi, self.level, anchor)

    @property
    def label(self) -> str:
        """Short name with the level where it has one: "kl", "cvar@0.5", "erm@5", "worst_case"."""
        if self.name == "mean":
            return "kl"
        return self.name if self.name == "worst_case" else f"{self.name}@{self.level:g}"
