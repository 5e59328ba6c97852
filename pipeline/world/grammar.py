"""A world: every response there can be, how likely the reference is to write it, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import WorldError

CATASTROPHE = -5.0
"""A response of at most this reward is a catastrophe."""


@dataclass(frozen=True)
class Token:
    """One choice at a state."""

    probability: float
    """Of the reference, in (0, 1]; those of a state sum to one."""
    then: float | tuple[Token, ...]
    """The reward of the whole response where it ends with this token, or the tokens that may follow."""


@dataclass(frozen=True, eq=False)
class World:
    """N states of at most V tokens and the R responses they make, of at most T tokens. float64."""

    log_ref: Tensor
    """``[N, V]``, log pi_ref(token | state), nats; -inf where the state has no such token. The root is state 0."""
    state: Tensor
    """``[R, T]``, the state before each token of a response; 0 after its end."""
    token: Tensor
    """``[R, T]``, the token written there; 0 after its end."""
    written: Tensor
    """``[R, T]`` bool: False after the end of a response."""
    reward: Tensor
    """``[R]``."""

    @classmethod
    def of(cls, root: Sequence[Token]) -> World:
        """The world whose responses begin with one of ``root``; states are numbered depth first.

        Raises:
            WorldError: for a state without tokens, probabilities that are not positive or do not sum to one, a
                reward that is not finite.
        """
        rows: list[list[float]] = []
        paths: list[list[tuple[int, int]]] = []
        rewards: list[float] = []

        def visit(tokens: Sequence[Token], before: list[tuple[int, int]]) -> None:
            state = len(rows)
            rows.append(_checked(tokens, before))
            for number, token in enumerate(tokens):
                path = [*before, (state, number)]
                if isinstance(token.then, tuple):
                    visit(token.then, path)
                    continue
                if not math.isfinite(token.then):
                    raise WorldError(f"{_place(path)}: the reward is {token.then}; it must be finite")
                paths.append(path)
                rewards.append(float(token.then))

        visit(root, [])
        width, longest = max(map(len, rows)), max(map(len, paths))
        padded = torch.tensor([path + [(0, 0)] * (longest - len(path)) for path in paths])
        probability = torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)
        return cls(
            log_ref=(probability / probability.sum(-1, keepdim=True)).log(),
            state=padded[..., 0],
            token=padded[..., 1],
            written=torch.arange(longest) < torch.tensor([[len(path)] for path in paths]),
            reward=torch.tensor(rewards, dtype=torch.float64),
        )

    @property
    def available(self) -> Tensor:
        """``[N, V]`` bool: the tokens that each state has."""
        return self.log_ref > -torch.inf

    @property
    def log_probability(self) -> Tensor:
        """``[R]``, log pi_ref(response), nats."""
        return self.sum_tokens(self.log_ref)

    def sum_tokens(self, values: Tensor) -> Tensor:
        """Values of tokens ``[..., N, V]`` summed along every response, ``[..., R]``."""
        return values[..., self.state, self.token].masked_fill(~self.written, 0.0).sum(-1)

    def sum_states(self, values: Tensor) -> Tensor:
        """Values of states ``[..., N]`` summed along every response, ``[..., R]``."""
        return values[..., self.state].masked_fill(~self.written, 0.0).sum(-1)


def _checked(tokens: Sequence[Token], before: list[tuple[int, int]]) -> list[float]:
    """The probabilities of a state."""
    probabilities = [token.probability for token in tokens]
    if not probabilities:
        raise WorldError(f"{_place(before)}: there is no token to write; give at least one")
    if not all(0 < p <= 1 for p in probabilities):
        raise WorldError(f"{_place(before)}: the probabilities {probabilities} are not all in (0, 1]")
    if abs(math.fsum(probabilities) - 1) > 1e-9:
        raise WorldError(f"{_place(before)}: the probabilities sum to {math.fsum(probabilities):.6g}, not to one")
    return probabilities


def _place(path: list[tuple[int, int]]) -> str:
    """Where in the tree, for a message: "after tokens 0, 2" or "at the root"."""
    return f"after tokens {', '.join(str(token) for _, token in path)}" if path else "at the root"
