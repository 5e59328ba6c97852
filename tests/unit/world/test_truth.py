"""Exact figures of a policy, against values by hand, plain enumeration and draws."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import RiskError
from pipeline.world.draw import draw_world
from pipeline.world.grammar import CATASTROPHE, World
from pipeline.world.truth import lower_tail, truth_of

sys.path.insert(0, str(Path(__file__).parent))
import plain

quick = settings(max_examples=50, deadline=None, derandomize=True)


def random_policy(world: World, seed: int) -> Tensor:
    """log pi ``[N, V]``, about a nat away from the reference."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(world.log_ref.shape)))
    return (world.log_ref + noise).log_softmax(-1)


def test_a_small_tree_by_hand() -> None:
    """Rewards 1, 2, -8.

    The reference writes them with 0.75, 0.225, 0.025: mean 0.75 + 0.45 - 0.2 = 1; worst tenth
    (0.025 * -8 + 0.075 * 1) / 0.1 = -1.25; worst hundredth -8. The policy with 0.5, 0.475, 0.025: mean
    0.5 + 0.95 - 0.2 = 1.25, the same tails; drift 0.5 ln(0.5/0.75) + 0.5 ln 2 + 0.5 (0.95 ln(0.95/0.9) +
    0.05 ln(0.05/0.1)) = 0.1438 + 0.0084 = 0.1522. Sequential KL: 0.75 ln(0.75/0.5) + 0.25 ln 0.5 = 0.1308 at the root,
    0.9 ln(0.9/0.95) + 0.1 ln 2 = 0.0207 at the second state, which 0.6679 of the chosen and 0.3612 of the rejected
    responses pass. Log-ratios -0.405, 0.747, 0: right are bx over a, by over a and bx over by, 0.6679 of all pairs.
    """
    world = World.of(plain.SMALL)
    reference = truth_of(world, world.log_ref)
    assert reference.mean.item() == pytest.approx(1.0)
    assert reference.cvar_10.item() == pytest.approx(-1.25)
    assert reference.cvar_1.item() == pytest.approx(-8.0)
    assert reference.worst.item() == -8.0
    assert reference.catastrophe.item() == pytest.approx(0.025)
    assert reference.drift.item() == reference.chosen_kl.item() == reference.rejected_kl.item() == 0.0
    assert reference.accuracy.item() == 0.0

    policy = truth_of(world, torch.tensor(plain.SMALL_POLICY, dtype=torch.float64).log())
    assert policy.mean.item() == pytest.approx(1.25)
    assert policy.cvar_10.item() == pytest.approx(-1.25)
    assert policy.drift.item() == pytest.approx(0.152194, abs=1e-6)
    assert policy.chosen_kl.item() == pytest.approx(0.130812 + 0.667928 * 0.0206542, abs=2e-6)
    assert policy.rejected_kl.item() == pytest.approx(0.130812 + 0.361200 * 0.0206542, abs=2e-6)
    assert policy.accuracy.item() == pytest.approx(0.667926, abs=1e-5)


def test_the_worst_case_is_over_what_can_be_written() -> None:
    world = World.of(plain.SMALL)
    never = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64).log()
    assert truth_of(world, never).worst.item() == 1.0
    assert truth_of(world, never).catastrophe.item() == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_against_plain_enumeration(seed: int) -> None:
    world = draw_world(seed)
    log_pi = random_policy(world, seed)
    truth = truth_of(world, log_pi)
    reference = plain.responses(world, world.log_ref.exp().tolist())
    found = plain.responses(world, log_pi.exp().tolist())
    atoms = [(one.reward, one.probability) for one in found]
    assert truth.mean.item() == pytest.approx(sum(r * p for r, p in atoms))
    assert truth.cvar_10.item() == pytest.approx(plain.lower_tail(atoms, 0.1))
    assert truth.cvar_1.item() == pytest.approx(plain.lower_tail(atoms, 0.01))
    assert truth.worst.item() == min(r for r, _ in atoms)
    assert truth.catastrophe.item() == pytest.approx(sum(p for r, p in atoms if r <= CATASTROPHE))
    ratio = [math.log(one.probability / two.probability) for one, two in zip(found, reference, strict=True)]
    assert truth.drift.item() == pytest.approx(sum(p * x for (_, p), x in zip(atoms, ratio, strict=True)))

    risk = [
        plain.state_risk(ref, pi, 1.0)
        for ref, pi in zip(world.log_ref.exp().tolist(), log_pi.exp().tolist(), strict=True)
    ]
    sequential = [sum(risk[state] for state, _ in one.steps) for one in found]
    pairs = list(plain.pairs(reference))
    mass = sum(weight for _, _, weight in pairs)
    assert truth.chosen_kl.item() == pytest.approx(sum(w * sequential[i] for i, _, w in pairs) / mass)
    assert truth.rejected_kl.item() == pytest.approx(sum(w * sequential[j] for _, j, w in pairs) / mass)
    assert truth.accuracy.item() == pytest.approx(sum(w for i, j, w in pairs if ratio[i] > ratio[j]) / mass)


def test_against_draws() -> None:
    """Mean and worst tenth of 400,000 responses written token by token, within five standard errors."""
    world, rng, number = draw_world(1), np.random.default_rng(0), 400_000
    log_pi = random_policy(world, 5)
    truth, policy = truth_of(world, log_pi), log_pi.exp().numpy()
    cumulated = (policy / policy.sum(-1, keepdims=True)).cumsum(-1)
    rows = np.arange(len(world.reward))[None].repeat(number, 0)  # responses still possible, by draw
    alive = np.ones_like(rows, dtype=bool)
    for position in range(world.state.shape[1]):
        state = world.state[alive.argmax(1), position].numpy()
        token = (rng.random(number)[:, None] > cumulated[state]).sum(1)
        alive &= world.token[:, position].numpy()[None] == token[:, None]
    assert (alive.sum(1) == 1).all()
    rewards = np.sort(world.reward.numpy()[alive.argmax(1)])
    tail = rewards[: number // 10]
    assert rewards.mean() == pytest.approx(truth.mean.item(), abs=5 * rewards.std() / number**0.5)
    # The variance of a tail mean: that within the tail, and that of the mass at its edge.
    spread = (tail.var() + 0.9 * (tail[-1] - tail.mean()) ** 2) ** 0.5
    assert tail.mean() == pytest.approx(truth.cvar_10.item(), abs=5 * spread / len(tail) ** 0.5)


@quick
@given(seed=st.integers(0, 10**6), low=st.floats(0.001, 1.0), high=st.floats(0.001, 1.0))
def test_order_of_worst_tail_and_mean(seed: int, low: float, high: float) -> None:
    """worst <= CVaR at the smaller level <= CVaR at the larger <= CVaR at 1 = mean."""
    low, high = sorted((low, high))
    world = draw_world(seed % 50)
    log_pi = random_policy(world, seed)
    truth, log_p = truth_of(world, log_pi), world.sum_tokens(log_pi)
    values = [lower_tail(world.reward, log_p, level).item() for level in (low, high, 1.0)]
    assert truth.worst.item() <= values[0] + 1e-9
    assert values[0] <= values[1] + 1e-9
    assert values[1] <= values[2] + 1e-9
    assert values[2] == pytest.approx(truth.mean.item())


@quick
@given(seed=st.integers(0, 10**6))
def test_drift_is_not_negative(seed: int) -> None:
    world = draw_world(seed % 50)
    truth = truth_of(world, random_policy(world, seed))
    assert truth.drift.item() > 0
    assert truth.chosen_kl.item() > 0
    assert 0 <= truth.accuracy.item() <= 1


@pytest.mark.parametrize("level", [0.0, -0.1, 1.5, math.nan])
def test_a_level_out_of_range(level: float) -> None:
    world = World.of(plain.SMALL)
    with pytest.raises(RiskError, match=r"cvar takes a level in \(0, 1\]"):
        lower_tail(world.reward, world.log_probability, level)
