"""Worlds of one shape, drawn at random: four ways to begin, of which the bold one is best on average and the only
dangerous one.

All share states and tokens, so that a batch of them trains at once; probabilities and rewards differ.
"""

from __future__ import annotations

import numpy as np

from pipeline.world.grammar import Token, World

BEGINNINGS = {"careful": 0.3, "plain": 0.5, "bold": 1.2, "dull": -0.7}
"""How a response begins, and about what it is worth without catastrophes."""
_MIDDLES, _ENDS = 2, 3
_SPREAD_MIDDLE, _SPREAD_END = 0.3, 0.4
"""Standard deviations of the rewards around their beginning's and, within it, their middle's."""
_WORST = -8.0
_RARE = (0.01, 0.05)
"""Range of the probability that a bold response ends in a catastrophe."""


def draw_world(seed: int) -> World:
    """Three tokens a response, 26 responses, of which 2 are catastrophes: together about 0.8% of what the reference
    writes. The same seed gives the same world."""
    rng = np.random.default_rng(seed)

    def shares(number: int, evenness: float) -> list[float]:
        drawn: list[float] = rng.dirichlet([evenness] * number).tolist()
        return drawn

    def ends(worth: float, dangerous: bool) -> tuple[Token, ...]:
        likely = shares(_ENDS, 4.0)
        rewards = worth + _SPREAD_MIDDLE * rng.normal() + _SPREAD_END * rng.normal(size=_ENDS)
        rare = float(rng.uniform(*_RARE)) if dangerous else 0.0
        tokens = tuple(Token(p * (1 - rare), float(r)) for p, r in zip(likely, rewards, strict=True))
        return (*tokens, Token(rare, _WORST)) if dangerous else tokens

    def middles(name: str) -> tuple[Token, ...]:
        return tuple(Token(p, ends(BEGINNINGS[name], name == "bold")) for p in shares(_MIDDLES, 4.0))

    return World.of([Token(p, middles(name)) for name, p in zip(BEGINNINGS, shares(4, 6.0), strict=True)])
