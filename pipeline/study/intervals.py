"""Intervals over two crossed sources of chance: the seed of training and the held-out films.

Percentile intervals of a bootstrap that draws seeds *and* films again together (Owen, "The pigeonhole bootstrap",
2007), the same draws for every setting, so that a difference is paired by seed and by film.

What it is worth, with five seeds (simulated, nominal 95%). Noise of a seed and film together (the luck of the samples)
is counted up to three times: were it the only one, the interval would cover more than 99%. Noise of the seeds alone is
seen through few of them: as three quarters of the variance it leaves 94%, as nine tenths 91%, as all of it 84%. The
value of every seed is therefore told beside the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.statistics import CONFIDENCE, Estimate, FloatArray

RESAMPLES = 4000
DRAW_SEED = 20505


@dataclass(frozen=True, eq=False)
class Draws:
    """D = 1 + S + R rows: all S seeds and U films as they are, then each seed alone, then R resamples."""

    seeds: FloatArray
    """``[D, S]``: the share of each seed, rows sum to one."""
    films: FloatArray
    """``[D, U]``: how often each film counts."""

    @property
    def num_seeds(self) -> int:
        return self.seeds.shape[1]

    def over_seeds(self, values: FloatArray) -> FloatArray:
        """A setting's figure ``[D]`` from those of its runs, ``values [D, S]``: their mean over the seeds drawn."""
        return np.asarray((values * self.seeds).sum(axis=1))

    def by_seed(self, values: FloatArray) -> tuple[float, ...]:
        """A figure ``[D]`` with each seed alone."""
        return tuple(values[1 : 1 + self.num_seeds].tolist())

    def resampled(self, values: FloatArray) -> FloatArray:
        """A figure ``[D]`` in every resample, ``[R]``."""
        return values[1 + self.num_seeds :]

    def estimate(self, values: FloatArray) -> Estimate:
        """A figure ``[D]`` with its interval; without one when there is a single film."""
        value = float(values[0])
        if self.films.shape[1] < 2:
            return Estimate(value)
        low, high = np.quantile(self.resampled(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(value, float(low), float(high))


def make_draws(num_seeds: int, num_films: int, *, resamples: int = RESAMPLES, seed: int = DRAW_SEED) -> Draws:
    """As many seeds and films as there are, with replacement, independently of one another."""
    rng = np.random.default_rng(seed)

    def counts(units: int) -> FloatArray:
        return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)

    seeds, films = counts(num_seeds) / num_seeds, counts(num_films)
    as_they_are = np.full((1, num_seeds), 1 / num_seeds)
    return Draws(
        np.concatenate([as_they_are, np.eye(num_seeds), seeds]),
        np.concatenate([np.ones((1 + num_seeds, num_films)), films]),
    )


def deviation(values: tuple[float, ...]) -> float | None:
    """Standard deviation of one figure over seeds; None with a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
