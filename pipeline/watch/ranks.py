"""Outputs as ranks against a baseline, ties broken at random: what makes every test free of any distribution. Pure.

Give every value x a uniform tie-breaker w of its own and order the pairs (x, w). If the baseline's n values and those
after it are exchangeable (nothing drifted), every order of all of them is equally likely. So the places k in 0..n of
new pairs among those of the baseline have, jointly, the law that they have for independent uniform numbers,
whatever the distribution is, ties included. With another uniform number u the rank ``(k + u) / (n + 1)`` is uniform
on (0, 1), and the law of a whole stream of ranks depends on n alone: also what the baseline's own scatter does to all
of them, for they share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def uniforms(seed: str, number: int, count: int) -> FloatArray:
    """``count`` uniform numbers in (0, 1) that belong to an output: the same on every machine, and after a restart.

    Args:
        seed: of the baseline.
        number: of the output, counted from the baseline's first.
    """
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, number]))
    # Midpoints of 2^52 cells: neither 0 nor 1, whose normal score is infinite.
    return (generator.integers(0, 1 << 52, count) + 0.5) / (1 << 52)


@dataclass(frozen=True)
class Ordered:
    """The baseline's values of one measure, ordered, with their tie-breakers."""

    values: FloatArray
    ties: FloatArray

    @classmethod
    def of(cls, values: Sequence[float], ties: FloatArray) -> Ordered:
        """Order them."""
        x, w = np.asarray(values, dtype=np.float64), ties
        order = np.lexsort((w, x))
        return cls(x[order], w[order])

    def rank(self, value: float, tie: float, within: float) -> float:
        """The rank of a new value, in (0, 1).

        Args:
            tie: its tie-breaker.
            within: the uniform number u.
        """
        low, high = np.searchsorted(self.values, value, "left"), np.searchsorted(self.values, value, "right")
        place = low + np.searchsorted(self.ties[low:high], tie)
        return float((place + within) / (len(self.values) + 1))

    def quantile(self, share: float) -> float:
        """A quantile of the baseline's values."""
        return float(np.quantile(self.values, share))


@dataclass(frozen=True)
class Baseline:
    """What later outputs are ranked against."""

    seed: str
    """Of the tie-breakers; different for every baseline."""
    values: Mapping[str, tuple[float, ...]]
    """By measure, in the order of the outputs."""

    @property
    def size(self) -> int:
        """Outputs in it."""
        return len(next(iter(self.values.values()), ()))

    def ordered(self) -> dict[str, Ordered]:
        """Every measure's values in order; the measures by name."""
        ties = np.array([uniforms(self.seed, number, 2 * len(self.values)) for number in range(self.size)])
        return {
            name: Ordered.of(values, ties[:, 2 * place])
            for place, (name, values) in enumerate(sorted(self.values.items()))
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"seed": self.seed, "values": {name: list(values) for name, values in self.values.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Baseline:
        """What `as_dict` gave."""
        return cls(value["seed"], {name: tuple(map(float, values)) for name, values in value["values"].items()})
