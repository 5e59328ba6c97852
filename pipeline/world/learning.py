"""Preference training of tabular policies, full batch and deterministic: the losses of the pipeline, nothing else.

A policy is one vector of logits a state and begins at the reference. With L = log pi_ref - log pi at a state and
D(y) = the sum over y's states of Phi(L), the loss of evidence (w, chosen, rejected) is

    sum over pairs of w * -log sigmoid(z),   z = beta * [margin + a * (D(chosen) - D(rejected))],

with a and its stop-gradient those of the method (`pipeline.risk.losses`), and d Phi / d logits = (sum q) pi - q.
Worlds and betas are the leading axes of one batch: they do not touch each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import RISK_METHODS
from pipeline.errors import RiskError, WorldError
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import Measure
from pipeline.world.evidence import Evidence
from pipeline.world.grammar import World

_MEAN = Measure("mean")


@dataclass(frozen=True)
class Objective:
    """A method with its measure (dpo has none; tdpo1 and tdpo2 take the mean) and, for tdpo2 and ra_dpo2, alpha.

    Raises:
        RiskError: for an unknown method, or a measure other than the mean for one that takes none.
    """

    method: str
    measure: Measure = _MEAN
    alpha: float = 0.5

    def __post_init__(self) -> None:
        pair_form(self.method, 1.0, self.alpha)
        if self.method not in RISK_METHODS and self.measure != _MEAN:
            raise RiskError(f"{self.method} takes no measure, got {self.measure.label}; use ra_dpo1 or ra_dpo2")

    @property
    def label(self) -> str:
        """Short name, such as "dpo" or "ra_dpo2 cvar@0.8"."""
        return f"{self.method} {self.measure.label}" if self.method in RISK_METHODS else self.method


@dataclass(frozen=True)
class Schedule:
    """Adam with a rate that falls to nothing on a line, so that a policy comes to rest at a kink of CVaR."""

    num_steps: int
    rate: float = 0.1

    def rate_at(self, step: int) -> float:
        """Of step 0, 1, ..."""
        return self.rate * (1 - step / self.num_steps)


class Problem:
    """W worlds of one shape, each with its evidence of P pairs.

    Raises:
        WorldError: without worlds, when they differ in their states or tokens, or evidence in its number of pairs.
    """

    def __init__(self, worlds: Sequence[World], evidence: Sequence[Evidence]) -> None:
        if not worlds:
            raise WorldError("there is no world to train in; give at least one")
        first = worlds[0]
        for world in worlds:
            if not (torch.equal(world.state, first.state) and torch.equal(world.token, first.token)):
                raise WorldError("worlds that are trained together must have the same states and tokens")
        if len(worlds) != len(evidence) or len({len(one.weight) for one in evidence}) != 1:
            raise WorldError("every world needs its evidence, and all the same number of pairs")
        self.shape = first
        self.log_ref = torch.stack([world.log_ref for world in worlds])
        """``[W, N, V]``."""
        self._ref_logps = first.sum_tokens(self.log_ref).unsqueeze(1)
        self._chosen = torch.stack([one.chosen for one in evidence]).unsqueeze(1)
        self._rejected = torch.stack([one.rejected for one in evidence]).unsqueeze(1)
        self._weight = torch.stack([one.weight for one in evidence]).unsqueeze(1)

    def loss(self, logits: Tensor, objective: Objective, betas: Tensor) -> Tensor:
        """Expected loss ``[W, B]`` of policies ``[W, B, N, V]``, one for each of ``betas [B]``."""
        logits = logits.masked_fill(~self.shape.available, -torch.inf)
        log_ratio = self.shape.sum_tokens(logits.log_softmax(-1)) - self._ref_logps
        chosen, rejected = (rows.expand(*logits.shape[:2], -1) for rows in (self._chosen, self._rejected))
        margin = log_ratio.gather(-1, chosen) - log_ratio.gather(-1, rejected)
        form = pair_form(objective.method, 1.0, objective.alpha)
        risks: list[Tensor | None] = [None, None]
        if form.uses_risk:
            log_ref = self.log_ref.unsqueeze(1).expand_as(logits)
            risk = self.shape.sum_states(_StateRisk.apply(logits, log_ref, objective.measure))
            risks = [risk.gather(-1, chosen), risk.gather(-1, rejected)]
        # z is linear in beta, so that one form serves them all.
        z = betas.unsqueeze(-1) * form.logit(margin, *risks)
        return (self._weight * -F.logsigmoid(z)).sum(-1)


class _StateRisk(torch.autograd.Function):
    """Phi(log pi_ref - log pi) at every state ``[...]`` from logits and log pi_ref, both ``[..., V]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_ref: Tensor, measure: Measure) -> Tensor:
        width = logits.shape[-1]
        log_pi = logits.log_softmax(-1)
        risk = measure(log_ref.reshape(-1, width), log_pi.reshape(-1, width))
        ctx.save_for_backward(log_pi.exp(), risk.q.clone().view_as(log_pi))
        return risk.value.view(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        pi, q = ctx.saved_tensors
        return gradient.unsqueeze(-1) * (q.sum(-1, keepdim=True) * pi - q), None, None


def train(problem: Problem, objective: Objective, betas: Sequence[float], schedule: Schedule) -> Tensor:
    """log pi ``[W, B, N, V]`` after the schedule, from pi_ref; the same arguments give the same bits.

    Raises:
        WorldError: for a beta that is not positive.
    """
    if not betas or not all(math.isfinite(beta) and beta > 0 for beta in betas):
        raise WorldError(f"betas {list(betas)}: give at least one, all above 0")
    start = problem.log_ref.masked_fill(~problem.shape.available, 0.0)
    logits = start.unsqueeze(1).repeat(1, len(betas), 1, 1).requires_grad_()
    each_beta = torch.tensor(betas, dtype=logits.dtype)
    optimiser = torch.optim.Adam([logits])
    for step in range(schedule.num_steps):
        optimiser.param_groups[0]["lr"] = schedule.rate_at(step)
        optimiser.zero_grad()
        problem.loss(logits, objective, each_beta).sum().backward()
        optimiser.step()
    return logits.detach().masked_fill(~problem.shape.available, -torch.inf).log_softmax(-1)
