"""Random and adversarial pairs of logits for the risk measures, and the levels to take them at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LARGEST = 1e4
_LEVELS = {"erm": (1e-4, 50.0), "wang": (1e-3, 5.0), "proportional_hazard": (1e-2, 1.0)}
_TAIL = (1e-4, 1.0)


class Batch(NamedTuple):
    kind: str
    ref: np.ndarray
    """Reference logits ``[N, V]``."""
    pi: np.ndarray
    """Policy logits ``[N, V]``."""
    boundary: float | None
    """A level at which some entry's mass ends exactly."""


def batches(seed: int, count: int, rows: int) -> Iterator[Batch]:
    """``count`` batches of ``rows`` positions, every kind in turn; one batch in 24 has a vocabulary above 2,048."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = list(_KINDS)[number % len(_KINDS)]
        size = (
            int(rng.integers(2048, 2305))
            if number % 24 == 7
            else int(rng.choice([2, 3, rng.integers(4, 301)], p=[0.1, 0.1, 0.8]))
        )
        ref, pi = _KINDS[kind](rng, rows, size)
        boundary = None
        if kind == "boundary":
            boundary = int(rng.integers(1, ref.shape[-1])) / ref.shape[-1]
        yield Batch(kind, np.clip(ref, -LARGEST, LARGEST), np.clip(pi, -LARGEST, LARGEST), boundary)


def masked_batches(seed: int, count: int, rows: int) -> Iterator[Batch]:
    """The same with entries masked in the reference, half of those in the policy too; one entry is never masked."""
    rng = np.random.default_rng(seed)
    for kind, ref, pi, boundary in batches(seed + 1, count, rows):
        share = rng.choice([0.05, 0.5, 0.95])
        masked = rng.random(ref.shape) < share
        masked[np.arange(len(ref)), rng.integers(0, ref.shape[-1], len(ref))] = False
        in_both = masked & (rng.random(ref.shape) < 0.5)
        yield Batch(f"masked {kind}", np.where(masked, -np.inf, ref), np.where(in_both, -np.inf, pi), boundary)


def draw_level(rng: np.random.Generator, name: str, batch: Batch) -> float:
    """A level of the measure, log-uniform over its range, its neutral value or a boundary now and then."""
    low, high = _LEVELS.get(name, _TAIL)
    if name not in _LEVELS and batch.boundary is not None:
        return batch.boundary
    special = {"wang": [0.0, 5.0], "erm": [low, 1.0, high]}.get(name, [low, 0.97, 0.99, 1.0])
    if rng.random() < 0.2:
        return float(rng.choice(special))
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _scale(rng: np.random.Generator, rows: int, low: float = 1e-6, high: float = LARGEST) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), (rows, 1)))


def _random(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A policy any distance from a reference anywhere between uniform and one-hot."""
    ref = rng.standard_normal((rows, size)) * _scale(rng, rows)
    return ref, ref + rng.standard_normal((rows, size)) * _scale(rng, rows)


def _moderate(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What training meets."""
    ref = rng.standard_normal((rows, size)) * _scale(rng, rows, 0.1, 8.0)
    return ref, ref + rng.standard_normal((rows, size)) * _scale(rng, rows, 0.01, 4.0)


def _one_hot(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    ref = rng.standard_normal((rows, size))
    ref[np.arange(rows), rng.integers(0, size, rows)] += _scale(rng, rows, 1.0, LARGEST)[:, 0]
    return ref, rng.standard_normal((rows, size)) * _scale(rng, rows, 0.1, 100.0)


def _uniform(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    ref = np.broadcast_to(rng.uniform(-LARGEST, LARGEST, (rows, 1)), (rows, size))
    return ref, rng.standard_normal((rows, size)) * _scale(rng, rows, 1e-6, 100.0)


def _whole_numbers(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """L takes a handful of values, each at many entries."""
    ref = rng.integers(-4, 5, (rows, size)).astype(float)
    return ref, ref + rng.integers(-2, 3, (rows, size)) * rng.choice([1.0, 0.25, 16.0], (rows, 1))


def _nearly_tied(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, apart by 1e-7 to 1e-4 of themselves."""
    ref, pi = _whole_numbers(rng, rows, size)
    return ref, pi + (1 + np.abs(pi)) * _scale(rng, rows, 1e-7, 1e-4) * rng.standard_normal((rows, size))


def _equal(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    ref = rng.standard_normal((rows, size)) * _scale(rng, rows)
    return ref, ref.copy()


def _equal_but_for_rounding(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    ref = rng.standard_normal((rows, size)) * _scale(rng, rows, 0.1, 100.0)
    return ref, (ref + rng.standard_normal((rows, 1))) * (1 + 1e-16 * rng.integers(-8, 9, (rows, size)))


def _zipf(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    ref = -rng.uniform(0.5, 3.0, (rows, 1)) * np.log(np.arange(1, size + 1))
    return rng.permuted(ref, axis=-1), rng.permuted(ref, axis=-1) * rng.uniform(0.0, 1.0, (rows, 1))


def _boundary(rng: np.random.Generator, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A uniform reference over a power of two, so that cumulated masses are exact."""
    size = 1 << max(1, size.bit_length() - 1)
    pi = rng.permuted(np.broadcast_to(np.linspace(-3, 3, size), (rows, size)), axis=-1)
    return np.zeros((rows, size)), pi * _scale(rng, rows, 0.01, 30.0)


_KINDS = {
    "random": _random,
    "moderate": _moderate,
    "one-hot": _one_hot,
    "uniform": _uniform,
    "whole numbers": _whole_numbers,
    "nearly tied": _nearly_tied,
    "equal": _equal,
    "equal but for rounding": _equal_but_for_rounding,
    "zipf": _zipf,
    "boundary": _boundary,
}
