"""Preference losses of the DPO family, per pair (arXiv 2305.18290, 2404.11999, 2505.20359).

With u = beta * [log-ratio(chosen) - log-ratio(rejected)] and D the sequential risk of a response:

    dpo                 -log sigmoid(u)
    tdpo1, ra_dpo1      -log sigmoid(u - beta * (D(rejected) - D(chosen)))
    tdpo2, ra_dpo2      -log sigmoid(u - alpha * beta * (D(rejected) - stop_gradient(D(chosen))))

tdpo1 and tdpo2 take D = sequential KL (the `mean` measure). What each presses on: the second form presses
D(rejected) down and leaves D(chosen) alone; the first presses D(rejected) down but rewards a larger D(chosen).

All are -log sigmoid(z) with z linear in the sums over a pair's tokens. The gradient of the loss is therefore one
number a pair, -sigmoid(-z), times the gradient of z, whose direction at every token is known before z is: the
fused head (`pipeline.risk.pair_head`) rests on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import RiskError


@dataclass(frozen=True)
class PairForm:
    """z = logps * (log-ratio(chosen) - log-ratio(rejected)) + risk * (D(chosen) - D(rejected))."""

    logps: float
    risk: float
    chosen_risk_gradient: float
    """The coefficient of D(chosen) in the gradient: `risk`, or 0 under the stop-gradient."""

    @property
    def uses_risk(self) -> bool:
        """Whether the loss needs the sequential risk at all."""
        return self.risk != 0.0 or self.chosen_risk_gradient != 0.0

    def logit(self, margin: Tensor, chosen_risk: Tensor | None, rejected_risk: Tensor | None) -> Tensor:
        """z ``[P]`` from log-ratio(chosen) - log-ratio(rejected) and both risks, nats."""
        z = self.logps * margin
        if not self.uses_risk:
            return z
        if chosen_risk is None or rejected_risk is None:
            raise RiskError(
                "this loss needs the sequential risk of both responses: score them with the hidden or the top-k tier, "
                "or use dpo"
            )
        if self.chosen_risk_gradient == 0.0:
            chosen_risk = chosen_risk.detach()
        return z + self.risk * (chosen_risk - rejected_risk)


def pair_form(method: str, beta: float, alpha: float) -> PairForm:
    """The coefficients of a method.

    Raises:
        RiskError: for an unknown method.
    """
    if method == "dpo":
        return PairForm(beta, 0.0, 0.0)
    if method in ("tdpo1", "ra_dpo1"):
        return PairForm(beta, beta, beta)
    if method in ("tdpo2", "ra_dpo2"):
        return PairForm(beta, alpha * beta, 0.0)
    raise RiskError(f"loss.method: unknown method {method!r}; choose one of dpo, tdpo1, tdpo2, ra_dpo1, ra_dpo2")


class PairLoss(NamedTuple):
    """Per-pair results, each ``[P]``."""

    loss: Tensor
    reward_margin: Tensor
    """log-ratio(chosen) - log-ratio(rejected), nats, no gradient; its sign is `reward_accuracy`."""


def preference_loss(
    form: PairForm,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_ref_logps: Tensor,
    rejected_ref_logps: Tensor,
    chosen_risk: Tensor | None,
    rejected_risk: Tensor | None,
) -> PairLoss:
    """Loss of every pair from its sequence sums (all ``[P]``, nats).

    Raises:
        RiskError: when the form needs the sequential risk and there is none.
    """
    margin = (chosen_logps - chosen_ref_logps) - (rejected_logps - rejected_ref_logps)
    z = form.logit(margin, chosen_risk, rejected_risk)
    return PairLoss(-F.logsigmoid(z), margin.detach())
