"""Thresholds with a stated probability of a false alarm, by simulation of uniform numbers. Pure.

For a baseline of n outputs and N outputs after it, the largest value that a rule's statistic takes has one law for
every distribution of the outputs (`pipeline.watch.ranks`). It is simulated: n uniform numbers make the baseline's gaps,
N more fall into them. The threshold is an order statistic of many such largest values, so far out that even the upper
99% confidence bound (Clopper and Pearson 1934) of the probability to exceed it is at most the rule's share of the false
alarms. For the usual sizes the values were simulated once (`pipeline.watch.table`).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.stats import beta

from pipeline.watch.ranks import FloatArray
from pipeline.watch.rules import TAIL, Kind, steps
from pipeline.watch.table import BASELINE, LARGEST, OUTPUTS, STREAMS

CERTAINTY = 0.99
"""Of the bound on what the simulation leaves open."""
_LEAST_STREAMS = 20_000
_BEYOND = 20
"""Streams expected beyond a threshold, so that its bound is not far above it."""


@cache
def threshold(kind: Kind, baseline: int, outputs: int, share: float, seed: int = 0) -> float:
    """What the statistic of a rule exceeds within ``outputs`` undrifted outputs with probability ``share`` at most.

    Taken from the table, or simulated: 1 ms a stream of 10,000 outputs, and 20 / ``share`` streams at least.
    """
    if (baseline, outputs) == (BASELINE, OUTPUTS):
        allowed = exceedances_allowed(share, STREAMS)
        fitting = [value for count, value in LARGEST[kind] if count <= allowed]
        if allowed >= 0 and fitting:
            return min(fitting)
    streams = max(_LEAST_STREAMS, math.ceil(_BEYOND / share))
    values = largest(kind, baseline, outputs, streams, seed)
    return float(np.sort(values)[::-1][exceedances_allowed(share, streams)])


def exceedances_allowed(share: float, streams: int) -> int:
    """Of how many simulated streams the largest values may exceed a threshold for it to be shown that the probability
    is at most ``share``; -1 when so few streams show nothing."""
    low, high = -1, streams - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if upper_bound(middle, streams) <= share else (low, middle - 1)
    return low


def upper_bound(count: int, streams: int, certainty: float = CERTAINTY) -> float:
    """The upper confidence bound of a probability that was seen ``count`` times."""
    return 1.0 if count >= streams else float(beta.ppf(certainty, count + 1, streams - count))


def largest(kind: Kind, baseline: int, outputs: int, streams: int, seed: int) -> FloatArray:
    """The largest value of the statistic in each of so many simulated streams, ``[streams]``."""
    rng = np.random.default_rng([seed, kind == "tail", baseline, outputs])
    found = np.empty(streams)
    for stream in range(streams):
        edges = np.sort(rng.random(baseline))
        found[stream] = path(steps(kind, _ranks(kind, edges, rng, outputs))).max()
    return found


def path(added: FloatArray) -> FloatArray:
    """The statistic after every output: ``S_t = max(0, S_{t-1} + step_t)``, along the last axis."""
    total = np.cumsum(added, axis=-1)
    # S_t is how far the sum lies above its lowest value so far, the 0 before the first output included.
    return np.asarray(total - np.minimum(np.minimum.accumulate(total, axis=-1), 0.0))


def _ranks(kind: Kind, edges: FloatArray, rng: np.random.Generator, outputs: int) -> FloatArray:
    """Ranks of new outputs against one baseline; for the tail only on which side of its bound they are."""
    n = len(edges)
    if kind == "location":
        places = np.searchsorted(edges, rng.random(outputs))
        return np.asarray((places + (rng.integers(0, 1 << 52, outputs) + 0.5) / (1 << 52)) / (n + 1))
    # (k + u) / (n + 1) > 1 - TAIL: beyond the gap number `cut`, or in it with a large u.
    cut = math.floor((1 - TAIL) * (n + 1))
    gaps = np.diff(np.concatenate(([0.0], edges, [1.0])))
    beyond = gaps[cut + 1 :].sum() + gaps[cut] * (cut + 1 - (1 - TAIL) * (n + 1))
    return np.where(rng.random(outputs) < beyond, 1.0, 0.0)
