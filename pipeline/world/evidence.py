"""What a policy may learn from: preferences between two responses of the reference.

Two different responses i and j are drawn independently from the reference, and i is preferred with the Bradley-Terry
probability sigmoid(reward(i) - reward(j)): an ordered pair has

    P(i chosen, j rejected)  proportional to  pi_ref(i) pi_ref(j) sigmoid(reward(i) - reward(j)),   i != j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import WorldError
from pipeline.world.grammar import World


@dataclass(frozen=True, eq=False)
class Evidence:
    """P ordered pairs and what each weighs."""

    chosen: Tensor
    """``[P]``, numbers of responses."""
    rejected: Tensor
    """``[P]``."""
    weight: Tensor
    """``[P]``, sums to one."""


def every_pair(world: World) -> Evidence:
    """The law itself: all R (R - 1) ordered pairs, weighted by their probability. What endless data would say.

    Raises:
        WorldError: when the world has a single response.
    """
    num_responses = len(world.reward)
    if num_responses < 2:
        raise WorldError("a world of one response has no pairs; give it a second one")
    chosen, rejected = (~torch.eye(num_responses, dtype=torch.bool)).nonzero().unbind(-1)
    log_p, reward = world.log_probability, world.reward
    weight = (log_p[chosen] + log_p[rejected]).exp() * (reward[chosen] - reward[rejected]).sigmoid()
    return Evidence(chosen, rejected, weight / weight.sum())


def drawn_pairs(world: World, num_pairs: int, seed: int) -> Evidence:
    """A data set of ``num_pairs`` pairs drawn from that law, each of weight 1 / ``num_pairs``.

    Raises:
        WorldError: without pairs.
    """
    if num_pairs < 1:
        raise WorldError(f"{num_pairs} pairs cannot be drawn; give at least 1")
    law = every_pair(world)
    # A stream of its own: a world and its data may have the same seed.
    rng = np.random.default_rng([seed, 1])
    rows = torch.from_numpy(rng.choice(len(law.weight), size=num_pairs, p=law.weight.numpy()))
    weight = torch.full((num_pairs,), 1 / num_pairs, dtype=torch.float64)
    return Evidence(law.chosen[rows], law.rejected[rows], weight)
