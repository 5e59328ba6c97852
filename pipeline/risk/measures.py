"""Risk measures of the per-token log-ratio: one function a measure, from a law to a value and a gradient.

At one position let L(z) = log pi_ref(z) - log pi(z) over the vocabulary, z ~ pi_ref, in nats. A measure Phi maps
that law to its upper tail (large means: the policy abandons what the reference says). Whatever the measure, a
kernel needs two things of it:

* ``value [N]``: Phi(L);
* ``q [N, V]``: the distorted reference, a maximiser of the dual form Phi(L) = max over q of <q, L> - penalty(q)
  (Artzner et al. 1999; Foellmer & Schied 2002). L depends on the policy's logits l through -log softmax(l), whose
  derivative along entry z is pi - 1_z, and by the envelope theorem q does not move to first order:

      d Phi / d l = sum_z q(z) * (pi - 1_z) = (sum q) * pi - q,

  with sum q = 1 for every cash-additive measure (all but the published code's rule).

Conventions. Entries within ``TIE * (1 + |VaR|)`` of the VaR (or of the maximum) are tied and share the remaining
mass in proportion to pi_ref, so that q = pi_ref at pi = pi_ref, where rounding would otherwise pick a tail. An
entry the reference never produces weighs nothing. An entry that only the policy never produces is infinite risk:
the value is not finite, and the head refuses it.

Adding a measure: a function ``(law, measure) -> Risk`` and a line in `_FUNCTIONS` here, its row in
``pipeline.catalogue`` and its name in ``pipeline.config.MeasureName``. A spectral (distortion) measure is its
distortion alone, see `spectral.distorted_risk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.catalogue import MEASURES, check_measure, is_risk_measure, measure_label
from pipeline.config import RISK_METHODS, LossConfig, RiskConfig
from pipeline.risk import spectral
from pipeline.risk.cvar import cvar
from pipeline.risk.evar import evar
from pipeline.risk.law import TIE, Law, Risk
from pipeline.risk.vocab_quantile import vocab_quantile


@dataclass(frozen=True)
class Measure:
    """A measure with its options: a name of the catalogue, or ``module:function``, a distortion of the user's own.

    Raises:
        RiskError: for an unknown name, a level or weight out of its range (``pipeline.catalogue``), or a function
            that is no distortion.
    """

    name: str
    level: float = 1.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_measure(self.name, self.level, self.weight)
        if ":" in self.name:
            spectral.own_distortion(self.name)

    def __call__(self, log_ref: Tensor, log_pi: Tensor) -> Risk:
        """Phi of log pi_ref - log pi, from normalised log-probabilities ``[N, V]`` (float32 or float64)."""
        return self.of(Law.between(log_ref, log_pi))

    def of(self, law: Law) -> Risk:
        """Phi of any random variable."""
        if ":" in self.name:
            return spectral.distorted_risk(law, spectral.own_distortion(self.name))
        return _FUNCTIONS[self.name](law, self)

    @property
    def label(self) -> str:
        """Short name with the options it takes: "kl", "cvar@0.5", "mean_cvar@0.1*0.5", "worst_case"."""
        return measure_label(self.name, self.level, self.weight)

    @property
    def is_risk_measure(self) -> bool:
        """False for the published code's rule: its q has a mass other than one and a top-k record cannot serve it."""
        return is_risk_measure(self.name)


def trained_measure(loss: LossConfig, risk: RiskConfig) -> Measure:
    """The measure in the loss: tdpo is ra_dpo at the mean; dpo has none, but its curves show the sequential KL."""
    return Measure(risk.measure, risk.level, risk.weight) if loss.method in RISK_METHODS else Measure("mean")


def mean(law: Law) -> Risk:
    """E[L] = KL(pi_ref || pi); q = pi_ref."""
    return Risk(law.mean, law.p)


def entropic(law: Law, level: float) -> Risk:
    """(1/level) log E[exp(level * L)]: the Renyi divergence of order 1 + level; q = softmax(log pi_ref + level * L)."""
    scaled = level * law.ratio
    tilted = law.log_p + scaled
    q = torch.softmax(tilted, -1)
    # Dividing by a small level shows two roundings: large logits leave log_p normalised to few digits only, and
    log_partition = tilted.logsumexp(-1) - law.log_p.logsumexp(-1)
    # near zero log E[exp(.)] loses all its digits.
    small = torch.maximum(scaled.amax(-1), -scaled.amin(-1)) < 0.5
    near_zero = torch.log1p((law.p * torch.expm1(scaled.clamp_(-1.0, 1.0))).sum(-1))
    return Risk(torch.where(small, near_zero, log_partition) / level, q)


def worst_case(law: Law) -> Risk:
    """max L over the reference's support, the limit of CVaR for level -> 0; q = pi_ref where L is maximal."""
    value = law.ratio.masked_fill(law.log_p == -torch.inf, -torch.inf).amax(-1)
    edge = value.unsqueeze(-1)
    at_maximum = law.ratio >= edge - TIE * (1 + edge.abs())
    return Risk(value, torch.softmax(law.log_p.masked_fill(~at_maximum, -torch.inf), -1))


def mean_cvar(law: Law, level: float, weight: float) -> Risk:
    """(1 - weight) E[L] + weight CVaR_level(L)."""
    tail = cvar(law, level)
    return Risk(torch.lerp(law.mean, tail.value, weight), torch.lerp(law.p, tail.q, weight))


_FUNCTIONS: dict[str, Callable[[Law, Measure], Risk]] = {
    "mean": lambda law, measure: mean(law),
    "cvar": lambda law, measure: cvar(law, measure.level),
    "erm": lambda law, measure: entropic(law, measure.level),
    "worst_case": lambda law, measure: worst_case(law),
    "mean_cvar": lambda law, measure: mean_cvar(law, measure.level, measure.weight),
    "evar": lambda law, measure: evar(law, measure.level),
    "wang": lambda law, measure: spectral.distorted_risk(law, lambda u: spectral.wang(u, measure.level)),
    "proportional_hazard": lambda law, measure: spectral.distorted_risk(
        law, lambda u: spectral.proportional_hazard(u, measure.level)
    ),
    "vocab_quantile": lambda law, measure: vocab_quantile(law, measure.level, parts=1),
    "vocab_quantile_halves": lambda law, measure: vocab_quantile(law, measure.level, parts=2),
}

assert _FUNCTIONS.keys() == MEASURES.keys(), "every measure of the catalogue has its function"
