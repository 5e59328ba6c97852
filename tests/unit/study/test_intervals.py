"""Draws of seeds and films, and what their intervals are worth."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.study.intervals import Draws, deviation, make_draws


def figure(values: np.ndarray, draws: Draws) -> np.ndarray:
    """The mean ``[D]`` of ``values [S, U]``."""
    by_run = draws.films @ values.T / draws.films.sum(axis=1, keepdims=True)
    return draws.over_seeds(by_run)


def width(values: np.ndarray, draws: Draws) -> float:
    found = draws.estimate(figure(values, draws))
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_the_rows_of_the_draws() -> None:
    """All of it, each seed alone, then as many seeds and films as there are; the same again for the same seed."""
    draws = make_draws(3, 7, resamples=50)
    assert draws.seeds.shape == (54, 3)
    assert draws.films.shape == (54, 7)
    assert draws.seeds[:4].tolist() == [[1 / 3] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert (draws.films[:4] == 1).all()
    assert (draws.films.sum(axis=1) == 7).all()
    assert draws.seeds.sum(axis=1) == pytest.approx(np.ones(54))
    assert (make_draws(3, 7, resamples=50).films == draws.films).all()
    assert (make_draws(3, 7, resamples=50, seed=1).films != draws.films).any()


def test_the_value_and_that_of_every_seed() -> None:
    draws = make_draws(2, 3, resamples=20)
    values = figure(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 8.0]]), draws)
    assert draws.estimate(values).value == 4.0
    assert draws.by_seed(values) == (2.0, 6.0)
    assert deviation(draws.by_seed(values)) == pytest.approx(8**0.5)
    assert deviation((1.0,)) is None


def test_no_interval_from_one_film() -> None:
    draws = make_draws(2, 1, resamples=20)
    assert draws.estimate(figure(np.array([[1.0], [2.0]]), draws)).low is None


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    """Two settings share what a seed and a film do to them: their difference is all but certain."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(5, 1)) + rng.normal(size=(1, 40))
    ours, theirs = (shared + 0.01 * rng.normal(size=(5, 40)) for _ in range(2))
    draws = make_draws(5, 40, resamples=400)
    assert width(ours - theirs, draws) < 0.05 * width(ours, draws)
    assert figure(ours - theirs, draws) == pytest.approx(figure(ours, draws) - figure(theirs, draws), abs=1e-12)


@pytest.mark.parametrize(
    ("of_seeds", "of_films", "of_both", "least", "most"),
    [
        (0.1, 1.0, 1.0, 0.9, 0.985),  # films dominate
        (0.0, 0.1, 1.0, 0.97, 1.0),  # chance of a single sample dominates: too wide
        (1.0, 0.1, 0.1, 0.74, 0.9),  # seeds dominate, of which there are few: too narrow, as the module says
    ],
)
def test_coverage(of_seeds: float, of_films: float, of_both: float, least: float, most: float) -> None:
    """How often the nominal 95% interval of a mean holds the truth, 0."""
    rng = np.random.default_rng(1)
    draws = make_draws(5, 50, resamples=400)
    repeats = 300
    held = 0
    for _ in range(repeats):
        values = (
            of_seeds * rng.normal(size=(5, 1)) + of_films * rng.normal(size=50) + of_both * rng.normal(size=(5, 50))
        )
        found = draws.estimate(figure(values, draws))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.0 <= found.high
    assert least <= held / repeats <= most
