"""A small token tree and, written a second time, the measures of its rewards.

What the tests compare the package with is here: plain Python that follows the definitions one atom at a time and
imports nothing from the package. Measures are of the *lower* tail of a reward (large is good), as in
arXiv 2505.20359; the package's are of the upper tail of a loss, which is the same thing with two signs changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

END = -1
"""Child of a token that ends the response."""

TensorRisk = Callable[[Tensor, Tensor], Tensor]
"""Rewards ``[n, V]`` and log-probabilities ``[n, V]`` to values ``[n]``."""
PlainRisk = Callable[[Sequence[float], Sequence[float]], float]
"""Rewards and probabilities of one state to its value."""


@dataclass(frozen=True)
class Tree:
    """States are numbered breadth first (root 0, children after their parent); V is the widest choice of tokens."""

    reward: Tensor
    """``[N, V]``, R(s, z); 0 where the state has no such token."""
    log_ref: Tensor
    """``[N, V]``, log pi_ref(z|s); -inf where the state has no such token."""
    child: Tensor
    """``[N, V]``, the state after z, or `END`."""
    depth: Tensor
    """``[N]``, tokens already written."""

    @property
    def available(self) -> Tensor:
        """``[N, V]`` bool: the tokens that each state has."""
        return self.log_ref > -torch.inf

    def responses(self) -> list[list[tuple[int, int]]]:
        """Every whole response, as its (state, token) steps."""
        found, open_paths = [], [[(0, z)] for z in self._tokens(0)]
        while open_paths:
            path = open_paths.pop()
            after = int(self.child[path[-1]])
            if after == END:
                found.append(path)
            else:
                open_paths += [[*path, (after, z)] for z in self._tokens(after)]
        return found

    def total(self, per_token: Tensor) -> Tensor:
        """Sum of ``per_token [N, V]`` along every response, ``[num_responses]``, in the order of `responses`."""
        return torch.stack([torch.stack([per_token[step] for step in path]).sum() for path in self.responses()])

    def _tokens(self, state: int) -> list[int]:
        return self.available[state].nonzero()[:, 0].tolist()


class Values(NamedTuple):
    """Of a policy under a nested measure (arXiv 2505.20359, Definition 3.2)."""

    q: Tensor
    """``[N, V]``, Q(s, z) = R(s, z) + V([s, z])."""
    v: Tensor
    """``[N]``, V(s); 0 after the last token."""

    @property
    def advantage(self) -> Tensor:
        """``[N, V]``, A(s, z) = Q(s, z) - V(s)."""
        return self.q - self.v.unsqueeze(-1)


def evaluate(tree: Tree, log_p: Tensor, risk: TensorRisk) -> Values:
    """The recursion V(s) = risk over z ~ p of Q(s, z), all states of a depth at once, deepest first."""
    q, v = tree.reward.clone(), torch.zeros(len(tree.depth), dtype=tree.reward.dtype)
    for depth in range(int(tree.depth.max()), -1, -1):
        rows = tree.depth == depth
        child = tree.child[rows]
        q[rows] += torch.where(child == END, 0.0, v[child])
        v[rows] = risk(q[rows], log_p[rows])
    return Values(q, v)


def plain_values(tree: Tree, log_p: Tensor, risk: PlainRisk) -> list[float]:
    """The same recursion, state by state in plain Python: V(s) for every state."""
    values = [0.0] * len(tree.depth)
    for state in reversed(range(len(values))):
        rewards, probs = [], []
        for token in range(tree.reward.shape[1]):
            if (log_prob := log_p[state, token].item()) == -math.inf:
                continue
            after = int(tree.child[state, token])
            rewards.append(tree.reward[state, token].item() + (0.0 if after == END else values[after]))
            probs.append(math.exp(log_prob))
        values[state] = risk(rewards, probs)
    return values


def random_tree(seed: int, *, same_width: bool = False) -> Tree:
    """Depth 2 to 4 and 2 to 5 tokens a state (fewer where deeper), some responses shorter than others.

    With ``same_width`` every state has the same number of tokens. Rewards have one decimal, so that ties occur.
    """
    rng = np.random.default_rng(seed)
    deepest = int(rng.integers(2, 5))
    widest = {2: 5, 3: 4, 4: 3}[deepest]
    rewards, logits, children, depths = [], [], [], [0]
    state = 0
    while state < len(depths):
        width = widest if same_width else int(rng.integers(2, widest + 1))
        child = [END] * widest
        for token in range(width):
            if depths[state] + 1 < deepest and rng.random() > 0.15:
                child[token] = len(depths)
                depths.append(depths[state] + 1)
        children.append(child)
        has_token = np.arange(widest) < width
        rewards.append(np.where(has_token, rng.normal(size=widest).round(1), 0.0))
        logits.append(np.where(has_token, rng.normal(size=widest), -np.inf))
        state += 1
    return Tree(
        reward=torch.from_numpy(np.stack(rewards)),
        log_ref=torch.from_numpy(np.stack(logits)).log_softmax(-1),
        child=torch.tensor(children),
        depth=torch.tensor(depths),
    )


def random_policy(tree: Tree, seed: int, spread: float = 1.0) -> Tensor:
    """log p ``[N, V]`` over the tokens that the tree has, ``spread`` nats away from its reference."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(tree.reward.shape)))
    return (tree.log_ref + spread * noise).log_softmax(-1)


def lower_tail(name: str, level: float, weight: float, values: Sequence[float], probs: Sequence[float]) -> float:
    """The measure of a reward with these values and probabilities, from its definition."""
    atoms = sorted((x, p) for x, p in zip(values, probs, strict=True) if p > 0)
    mean = math.fsum(x * p for x, p in atoms)
    if name == "mean":
        return mean
    if name == "worst_case":
        return atoms[0][0]
    if name == "erm":
        return -_log_mean_exp(atoms, level) / level
    if name == "evar":
        return _evar(atoms, level, mean)
    if name == "wang":
        return _distorted(atoms, lambda u: NormalDist().cdf(NormalDist().inv_cdf(u) + level))
    if name == "proportional_hazard":
        return _distorted(atoms, lambda u: u**level)
    # Rockafellar and Uryasev: a concave function of c that is linear between atoms.
    cvar = max(c - math.fsum(p * max(c - x, 0.0) for x, p in atoms) / level for c, _ in atoms)
    return {"cvar": cvar, "mean_cvar": (1 - weight) * mean + weight * cvar}[name]


def _log_mean_exp(atoms: list[tuple[float, float]], t: float) -> float:
    """log E[exp(-t X)]."""
    lowest = atoms[0][0]
    return math.log(math.fsum(p * math.exp(-t * (x - lowest)) for x, p in atoms)) - t * lowest


def _evar(atoms: list[tuple[float, float]], level: float, mean: float) -> float:
    """sup over t > 0 of -(log E[exp(-t X)] - log level) / t; the minimum for t to infinity, the mean at level 1."""
    lowest, span = atoms[0][0], atoms[-1][0] - atoms[0][0]
    if level == 1.0 or span == 0.0:
        return mean
    unit = [((x - lowest) / span, p) for x, p in atoms]  # so that one range of t serves every reward
    best = minimize_scalar(
        lambda log_t: (_log_mean_exp(unit, math.exp(log_t)) - math.log(level)) / math.exp(log_t),
        bounds=(-7.0, 12.0),
        method="bounded",
        options={"xatol": 1e-9},
    ).fun
    return lowest + span * max(0.0, -best)


def _distorted(atoms: list[tuple[float, float]], g: Callable[[float], float]) -> float:
    """Sum of x_i * (g(S_i) - g(S_i-1)) from the lowest atom up, S_i the mass up to x_i; g(0) = 0 and g(1) = 1."""
    value, mass, before = 0.0, 0.0, 0.0
    for index, (x, p) in enumerate(atoms):
        mass += p
        after = 1.0 if index == len(atoms) - 1 else g(min(mass, math.nextafter(1.0, 0.0)))
        value += x * (after - before)
        before = after
    return value
