"""A world and a loss written a second time, in plain Python that follows the definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.world.grammar import Token, World

SMALL = (Token(0.75, 1.0), Token(0.25, (Token(0.9, 2.0), Token(0.1, -8.0))))
"""Two states: a safe end worth 1, or a second token worth 2 that is a catastrophe one time in ten."""
SMALL_POLICY = [[0.5, 0.5], [0.95, 0.05]]
"""Probabilities of a policy of it, by state."""


@dataclass(frozen=True)
class Response:
    """One of a world, under a policy."""

    steps: list[tuple[int, int]]
    reward: float
    probability: float


def responses(world: World, policy: Sequence[Sequence[float]]) -> list[Response]:
    """Every response with its probability under ``policy``."""
    found = []
    for number in range(len(world.reward)):
        length = int(world.written[number].sum())
        steps = list(zip(world.state[number].tolist(), world.token[number].tolist(), strict=True))[:length]
        probability = math.prod(policy[state][token] for state, token in steps)
        found.append(Response(steps, world.reward[number].item(), probability))
    return found


def lower_tail(atoms: Sequence[tuple[float, float]], level: float) -> float:
    """Mean of the worst ``level`` mass of (value, probability), one atom after the other from below."""
    left, total = level, 0.0
    for value, probability in sorted(atoms):
        taken = min(probability, left)
        total += value * taken
        left -= taken
    return total / level


def pairs(found: Sequence[Response]) -> Iterator[tuple[int, int, float]]:
    """Ordered pairs (chosen, rejected, weight) of the reference's responses, weights up to a common factor."""
    for i, one in enumerate(found):
        for j, two in enumerate(found):
            if i != j:
                preferred = 1 / (1 + math.exp(two.reward - one.reward))
                yield i, j, one.probability * two.probability * preferred


def state_risk(reference: Sequence[float], policy: Sequence[float], level: float) -> float:
    """CVaR of log pi_ref - log pi under pi_ref: minus the lower tail of minus it."""
    atoms = [(-math.log(p / q), p) for p, q in zip(reference, policy, strict=True) if p > 0]
    return -lower_tail(atoms, level)


def expected_loss(
    world: World,
    logits: Sequence[Sequence[float]],
    frozen: Sequence[Sequence[float]],
    coefficients: tuple[float, float],
    level: float,
) -> float:
    """Sum over pairs of weight * -log sigmoid(a * margin + b * (D(chosen) - D(rejected))), coefficients (a, b).

    D(chosen) is that of the policy ``frozen``: the same logits for a method without stop-gradient.
    """
    reference = world.log_ref.exp().tolist()
    policy, still = ([_softmax(row, ref) for row, ref in zip(x, reference, strict=True)] for x in (logits, frozen))
    ours, theirs = responses(world, policy), responses(world, reference)
    risk, still_risk = (
        [state_risk(ref, row, level) for ref, row in zip(reference, x, strict=True)] for x in (policy, still)
    )
    a, b = coefficients
    total = mass = 0.0
    for i, j, weight in pairs(theirs):
        margin = math.log(ours[i].probability / theirs[i].probability)
        margin -= math.log(ours[j].probability / theirs[j].probability)
        chosen = sum(still_risk[state] for state, _ in ours[i].steps)
        rejected = sum(risk[state] for state, _ in ours[j].steps)
        total += weight * math.log1p(math.exp(-(a * margin + b * (chosen - rejected))))
        mass += weight
    return total / mass


def _softmax(logits: Sequence[float], reference: Sequence[float]) -> list[float]:
    exps = [math.exp(x) if p > 0 else 0.0 for x, p in zip(logits, reference, strict=True)]
    return [x / sum(exps) for x in exps]
