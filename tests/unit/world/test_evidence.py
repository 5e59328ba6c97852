"""The law of preferences, and data drawn from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import WorldError
from pipeline.world.draw import draw_world
from pipeline.world.evidence import drawn_pairs, every_pair
from pipeline.world.grammar import Token, World

sys.path.insert(0, str(Path(__file__).parent))
from plain import SMALL, pairs, responses


def test_the_law_is_that_of_the_definition() -> None:
    world = draw_world(3)
    found = list(pairs(responses(world, world.log_ref.exp().tolist())))
    total = sum(weight for _, _, weight in found)
    law = every_pair(world)
    ours = zip(law.chosen.tolist(), law.rejected.tolist(), law.weight.tolist(), strict=True)
    assert list(ours) == [(i, j, pytest.approx(weight / total)) for i, j, weight in found]


def test_drawn_pairs_follow_the_law() -> None:
    """Shares of 200,000 draws within five standard errors of their probabilities."""
    law, data = every_pair(World.of(SMALL)), drawn_pairs(World.of(SMALL), 200_000, seed=1)
    for chosen, rejected, weight in zip(law.chosen, law.rejected, law.weight.tolist(), strict=True):
        share = data.weight[(data.chosen == chosen) & (data.rejected == rejected)].sum().item()
        assert abs(share - weight) < 5 * (weight * (1 - weight) / 200_000) ** 0.5 + 1e-4


def test_the_same_seed_draws_the_same_pairs() -> None:
    world = draw_world(0)
    one, two, other = (drawn_pairs(world, 50, seed) for seed in (7, 7, 8))
    assert torch.equal(one.chosen, two.chosen)
    assert torch.equal(one.rejected, two.rejected)
    assert not torch.equal(one.chosen, other.chosen)


def test_what_has_no_pairs() -> None:
    with pytest.raises(WorldError, match="a world of one response has no pairs"):
        every_pair(World.of((Token(1.0, 0.0),)))
    with pytest.raises(WorldError, match="0 pairs cannot be drawn; give at least 1"):
        drawn_pairs(World.of(SMALL), 0, seed=0)
