"""Training in a known world: the loss by another computation, its gradient, where it ends, and that it repeats."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import RiskError, WorldError
from pipeline.risk.measures import Measure
from pipeline.world.draw import draw_world
from pipeline.world.evidence import drawn_pairs, every_pair
from pipeline.world.grammar import World
from pipeline.world.learning import Objective, Problem, Schedule, train
from pipeline.world.truth import truth_of

sys.path.insert(0, str(Path(__file__).parent))
import plain

CVAR = Measure("cvar", 0.7)
OBJECTIVES = {
    "dpo": Objective("dpo"),
    "tdpo1": Objective("tdpo1"),
    "tdpo2": Objective("tdpo2", alpha=0.5),
    "ra_dpo1": Objective("ra_dpo1", CVAR),
    "ra_dpo2": Objective("ra_dpo2", CVAR, alpha=0.5),
}
COEFFICIENTS = {
    "dpo": (1.0, 0.0),
    "tdpo1": (1.0, 1.0),
    "tdpo2": (1.0, 0.5),
    "ra_dpo1": (1.0, 1.0),
    "ra_dpo2": (1.0, 0.5),
}
"""Of margin and D(chosen) - D(rejected), in units of beta."""
every_method = pytest.mark.parametrize("method", OBJECTIVES)


def problem(seed: int = 0) -> Problem:
    world = draw_world(seed)
    return Problem([world], [every_pair(world)])


def one_beta(beta: float) -> torch.Tensor:
    return torch.tensor([beta], dtype=torch.float64)


@every_method
def test_first_loss_and_first_risk(method: str) -> None:
    """At pi = pi_ref the loss is ln 2 for every beta, and the drift and the sequential risk are zero."""
    world = draw_world(0)
    start = world.log_ref.expand(1, 2, *world.log_ref.shape)
    loss = problem().loss(start, OBJECTIVES[method], torch.tensor([0.1, 3.0], dtype=torch.float64))
    assert loss.shape == (1, 2)
    assert loss.flatten().tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)
    truth = truth_of(world, world.log_ref)
    assert truth.drift.item() == truth.chosen_kl.item() == 0.0
    assert CVAR(world.log_ref, world.log_ref).value.tolist() == pytest.approx([0.0] * len(world.log_ref))


@every_method
def test_loss_and_gradient(method: str) -> None:
    """Value by plain Python, gradient by central differences of it, away from kinks. Under the stop-gradient of
    tdpo2 and ra_dpo2 the risk of the chosen response does not move."""
    world, beta = draw_world(2), 0.8
    noise = torch.from_numpy(np.random.default_rng(4).normal(size=tuple(world.log_ref.shape)))
    leaf = (world.log_ref.masked_fill(~world.available, 0.0) + 0.7 * noise).requires_grad_()
    loss = Problem([world], [every_pair(world)]).loss(leaf[None, None], OBJECTIVES[method], one_beta(beta))
    loss.sum().backward()
    assert leaf.grad is not None

    def by_hand(logits: torch.Tensor, frozen: torch.Tensor) -> float:
        a, b = COEFFICIENTS[method]
        level = 0.7 if method.startswith("ra_") else 1.0
        return plain.expected_loss(world, logits.tolist(), frozen.tolist(), (beta * a, beta * b), level)

    at = leaf.detach()
    assert loss.item() == pytest.approx(by_hand(at, at), abs=1e-12)
    for state, token in ((0, 0), (0, 2), (4, 1), (8, 3), (9, 0)):  # of the root, and of states deeper down
        moved = torch.zeros_like(at)
        moved[state, token] = 1e-5
        high, low = (by_hand(at + way * moved, at if method.endswith("2") else at + way * moved) for way in (1.0, -1.0))
        assert leaf.grad[state, token].item() == pytest.approx((high - low) / 2e-5, abs=1e-8)


def test_dpo_ends_in_its_closed_form() -> None:
    """With every pair known, pi(y) is proportional to pi_ref(y) exp(reward(y) / beta) (arXiv 2305.18290, eq. 4)."""
    world = draw_world(0)
    log_pi = train(problem(), Objective("dpo"), [1.0, 3.0], Schedule(num_steps=1500, rate=0.05))
    for policy, beta in zip(log_pi[0], (1.0, 3.0), strict=True):
        expected = (world.log_probability + world.reward / beta).softmax(-1)
        assert torch.allclose(world.sum_tokens(policy).exp(), expected, atol=1e-4)


def test_two_hundred_steps_are_enough() -> None:
    """After as many as the job takes dpo at beta 1 has mean and drift of its closed form within 0.01."""
    world = draw_world(0)
    ours = truth_of(world, train(problem(), Objective("dpo"), [1.0], Schedule(200))[0, 0])
    log_p = (world.log_probability + world.reward).log_softmax(-1)
    assert ours.mean.item() == pytest.approx((log_p.exp() * world.reward).sum().item(), abs=0.01)
    drift = (log_p.exp() * (log_p - world.log_probability)).sum().item()
    assert ours.drift.item() == pytest.approx(drift, abs=0.01)


@every_method
def test_training_repeats_to_the_bit(method: str) -> None:
    short = Schedule(num_steps=20)
    one, two = (train(problem(), OBJECTIVES[method], [0.1, 1.0], short) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one.exp().sum(-1), torch.ones(1, dtype=torch.float64))


@every_method
def test_worlds_and_betas_of_a_batch_do_not_touch_each_other(method: str) -> None:
    worlds, short = [draw_world(0), draw_world(1)], Schedule(num_steps=20)
    data = [drawn_pairs(world, 30, seed) for seed, world in enumerate(worlds)]
    together = train(Problem(worlds, data), OBJECTIVES[method], [0.2, 1.0], short)
    alone = train(Problem(worlds[1:], data[1:]), OBJECTIVES[method], [1.0], short)
    assert torch.allclose(together[1, 1].exp(), alone[0, 0].exp(), atol=1e-9)


def test_rates_fall_to_nothing() -> None:
    schedule = Schedule(num_steps=4, rate=0.2)
    assert [schedule.rate_at(step) for step in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_bad_arguments() -> None:
    with pytest.raises(RiskError, match="unknown method 'dpoo'; choose one of dpo, tdpo1"):
        Objective("dpoo")
    with pytest.raises(RiskError, match=r"tdpo2 takes no measure, got cvar@0\.7; use ra_dpo1 or ra_dpo2"):
        Objective("tdpo2", CVAR)
    with pytest.raises(RiskError, match=r"cvar takes a level in \(0, 1\], got 1.2"):
        Objective("ra_dpo2", Measure("cvar", 1.2))
    for betas in ([], [1.0, 0.0], [math.nan]):
        with pytest.raises(WorldError, match="give at least one, all above 0"):
            train(problem(), Objective("dpo"), betas, Schedule(1))
    with pytest.raises(WorldError, match="there is no world to train in"):
        Problem([], [])
    small, drawn = World.of(plain.SMALL), draw_world(0)
    with pytest.raises(WorldError, match="must have the same states and tokens"):
        Problem([small, drawn], [every_pair(small), every_pair(drawn)])
    with pytest.raises(WorldError, match="all the same number of pairs"):
        Problem([small, small], [every_pair(small), drawn_pairs(small, 3, 0)])
