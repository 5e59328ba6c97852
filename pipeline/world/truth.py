"""What a policy does to the reward and how far it went, by enumeration of every response: no sampling, no error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.risk.law import Law
from pipeline.risk.measures import Measure
from pipeline.world.evidence import every_pair
from pipeline.world.grammar import CATASTROPHE, World


class Truth(NamedTuple):
    """Of a batch of policies, each ``[...]``; rewards in the world's units, divergences in nats."""

    mean: Tensor
    """Expected reward."""
    cvar_10: Tensor
    """Mean reward of the worst 10% of what the policy writes."""
    cvar_1: Tensor
    """Of the worst 1%."""
    worst: Tensor
    """The least reward of any response that the policy can write at all."""
    catastrophe: Tensor
    """Probability of a catastrophe."""
    drift: Tensor
    """KL(pi || pi_ref) of whole responses."""
    chosen_kl: Tensor
    """Expected sequential KL, the sum over states of KL(pi_ref || pi), on the chosen response of a pair."""
    rejected_kl: Tensor
    """On the rejected one."""
    accuracy: Tensor
    """Probability that the log-ratio to the reference is larger on the chosen than on the rejected response."""


def truth_of(world: World, log_pi: Tensor) -> Truth:
    """The truth about policies ``[..., N, V]`` (log-probabilities, -inf where the state has no such token)."""
    log_p = world.sum_tokens(log_pi)
    p = log_p.exp()
    log_ratio = log_p - world.log_probability
    ratio = (world.log_ref - log_pi).masked_fill(~world.available, 0.0)
    sequential = world.sum_states((world.log_ref.exp() * ratio).sum(-1))
    pairs = every_pair(world)
    right = log_ratio[..., pairs.chosen] > log_ratio[..., pairs.rejected]
    return Truth(
        mean=(p * world.reward).sum(-1),
        cvar_10=lower_tail(world.reward, log_p, 0.10),
        cvar_1=lower_tail(world.reward, log_p, 0.01),
        worst=world.reward.expand_as(p).masked_fill(p == 0, torch.inf).amin(-1),
        catastrophe=p[..., world.reward <= CATASTROPHE].sum(-1),
        drift=(p * log_ratio.masked_fill(p == 0, 0.0)).sum(-1),
        chosen_kl=(pairs.weight * sequential[..., pairs.chosen]).sum(-1),
        rejected_kl=(pairs.weight * sequential[..., pairs.rejected]).sum(-1),
        accuracy=(pairs.weight * right).sum(-1),
    )


def lower_tail(reward: Tensor, log_p: Tensor, level: float) -> Tensor:
    """Mean of the worst ``level`` mass of the reward ``[R]`` under ``log_p [..., R]``: minus the upper tail of minus
    it, the atom at the quantile split.

    Raises:
        RiskError: for a level outside (0, 1].
    """
    flat = log_p.reshape(-1, log_p.shape[-1])
    tail = Measure("cvar", level).of(Law(-reward.expand_as(flat).contiguous(), flat)).value
    return -tail.view(log_p.shape[:-1])
