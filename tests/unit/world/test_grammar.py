"""A token tree as tensors, and the refusal of one that makes no sense."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import WorldError
from pipeline.world.draw import BEGINNINGS, draw_world
from pipeline.world.grammar import CATASTROPHE, Token, World

sys.path.insert(0, str(Path(__file__).parent))
from plain import SMALL

BOLD = list(BEGINNINGS).index("bold")


def test_a_small_tree_by_hand() -> None:
    """Responses a, bx, by: 0.75, 0.25 * 0.9 = 0.225, 0.25 * 0.1 = 0.025."""
    world = World.of(SMALL)
    assert world.reward.tolist() == [1.0, 2.0, -8.0]
    assert world.log_probability.exp().tolist() == pytest.approx([0.75, 0.225, 0.025])
    assert world.written.tolist() == [[True, False], [True, True], [True, True]]
    assert world.sum_states(torch.tensor([1.0, 10.0])).tolist() == [1.0, 11.0, 11.0]
    assert world.sum_tokens(torch.tensor([[1.0, 2.0], [10.0, 20.0]])).tolist() == [1.0, 12.0, 22.0]


def test_states_of_different_width() -> None:
    world = World.of((Token(0.5, 0.0), Token(0.3, 1.0), Token(0.2, (Token(1.0, 2.0),))))
    assert world.available.tolist() == [[True, True, True], [True, False, False]]
    assert world.log_probability.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ((), "at the root: there is no token to write; give at least one"),
        ((Token(1.0, ()),), "after tokens 0: there is no token"),
        ((Token(0.5, 0.0), Token(0.4, 0.0)), "at the root: the probabilities sum to 0.9, not to one"),
        ((Token(1.0, 0.0), Token(0.0, 0.0)), r"at the root: the probabilities \[1.0, 0.0\] are not all in \(0, 1\]"),
        ((Token(math.nan, 0.0),), "are not all in"),
        ((Token(0.5, 0.0), Token(0.5, (Token(0.7, 0.0),))), "after tokens 1: the probabilities sum to 0.7"),
        ((Token(1.0, math.inf),), "after tokens 0: the reward is inf; it must be finite"),
    ],
)
def test_a_tree_that_makes_no_sense(root: tuple[Token, ...], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        World.of(root)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_worlds(seed: int) -> None:
    """One shape for all, two rare catastrophes behind one opening."""
    world, again, other = draw_world(seed), draw_world(seed), draw_world(seed + 1)
    assert torch.equal(world.log_ref, again.log_ref)
    assert torch.equal(world.reward, again.reward)
    assert torch.equal(world.state, other.state)
    assert not torch.equal(world.reward, other.reward)
    p, bad = world.log_probability.exp(), world.reward <= CATASTROPHE
    assert p.sum().item() == pytest.approx(1.0)
    assert bad.sum() == 2
    assert 0.001 < p[bad].sum() < 0.03
    assert (world.token[bad, 0] == BOLD).all()


def test_the_dangerous_opening_is_the_best_on_average() -> None:
    """Expected reward after each opening, catastrophes included, averaged over twenty worlds."""
    means = torch.stack([_means_by_opening(draw_world(seed)) for seed in range(20)]).mean(0)
    assert means.argmax() == BOLD


def _means_by_opening(world: World) -> Tensor:
    p, opening = world.log_probability.exp(), world.token[:, 0]
    return torch.stack([(p * world.reward)[opening == k].sum() / p[opening == k].sum() for k in range(4)])
