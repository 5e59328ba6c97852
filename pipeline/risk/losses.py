"""Preference losses of the DPO family, per pair (arXiv 2305.18290, 2404.11999, 2505.20359).

With u = beta * [log-ratio(chosen) - log-ratio(rejected)] and D the sequential risk of a response:

    dpo                 -log sigmoid(u)
    tdpo1, ra_dpo1      -log sigmoid(u - beta * (D(rejected) - D(chosen)))
    tdpo2, ra_dpo2      -log sigmoid(u - alpha * beta * (D(rejected) - stop_gradient(D(chosen))))

tdpo1 and tdpo2 take D = sequential KL (the `mean` measure). What each presses on: the second form presses
D(rejected) down and leaves D(chosen) alone; the first presses D(rejected) down but rewards a larger D(chosen).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PairLoss(NamedTuple):
    """Per-pair results, each ``[P]``."""

    loss: Tensor
    reward_margin: Tensor
    """log-ratio(chosen) - log-ratio(rejected), nats, no gradient; its sign is `reward_accuracy`."""


def preference_loss(
    method: str,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_ref_logps: Tensor,
    rejected_ref_logps: Tensor,
    chosen_risk: Tensor | None,
    rejected_risk: Tensor | None,
    *,
    beta: float,
    alpha: float,
) -> PairLoss:
    """Loss of every pair from its sequence sums (all ``[P]``, nats).

    Raises:
        ValueError: for an unknown method, or one that needs the sequential risk when there is none.
    """
    margin = (chosen_logps - chosen_ref_logps) - (rejected_logps - rejected_ref_logps)
    u = beta * margin
    if method == "dpo":
        z = u
    elif method in ("tdpo1", "ra_dpo1", "tdpo2", "ra_dpo2"):
        if chosen_risk is None or rejected_risk is None:
            raise ValueError(f"{method} needs the sequential risk of both responses")
        if method.endswith("1"):
            z = u - beta * (rejected_risk - chosen_risk)
        else:
            z = u - alpha * beta * (rejected_risk - chosen_risk.detach())
    else:
        raise ValueError(f"unknown method {method!r}")
    return PairLoss(-F.logsigmoid(z), margin.detach())
