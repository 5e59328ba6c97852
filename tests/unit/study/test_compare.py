"""A front read at a place, and tests of differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.study.compare import first_crossing, front_of, holm, match, p_value
from pipeline.study.intervals import Draws, make_draws

DRAWS = make_draws(1, 3, resamples=2)
"""Four rows: as it is, the one seed alone, two resamples."""


def rows(*values: float) -> np.ndarray:
    """One value in all four rows, or a value for each."""
    return np.array(values * 4 if len(values) == 1 else values, dtype=np.float64)


def point(drift: np.ndarray, mean: np.ndarray, tail: np.ndarray) -> dict[str, np.ndarray]:
    return {"drift": drift, "mean": mean, "tail": tail}


FRONT = [
    point(rows(4.0), rows(0.5), rows(-0.2)),
    point(rows(1.0), rows(0.1), rows(-0.6)),
    point(rows(16.0), rows(0.3), rows(-0.8)),
]
"""By drift: 1, 4, 16; the mean rises from 0.1 to 0.5 and falls to 0.3, the tail from -0.6 to -0.2 and to -0.8."""


def test_the_same_drift_by_hand() -> None:
    """2 is halfway from 1 to 4 on a log scale: mean 0.3, tail -0.4. 8 is halfway from 4 to 16: 0.4, -0.5."""
    for drift, mean, tail in ((2.0, 0.3, -0.4), (8.0, 0.4, -0.5), (1.0, 0.1, -0.6), (16.0, 0.3, -0.8)):
        setting = point(rows(drift), rows(1.0), rows(0.0))
        found = match(setting, front_of(FRONT), "drift", ("mean", "tail"), DRAWS)
        assert (found.reason, found.outside) == (None, 0.0)
        assert found.differences["mean"] == pytest.approx(rows(1.0 - mean))
        assert found.differences["tail"] == pytest.approx(rows(0.0 - tail))


def test_the_same_mean_by_hand() -> None:
    """0.4 is met on the way up, at three quarters from 0.1 to 0.5, and on the way down; the former has less drift:
    1 + 0.75 * 3 = 3.25 nats, tail -0.6 + 0.75 * 0.4 = -0.3."""
    found = match(point(rows(9.0), rows(0.4), rows(0.0)), front_of(FRONT), "mean", ("drift", "tail"), DRAWS)
    assert found.differences["drift"] == pytest.approx(rows(9.0 - 3.25))
    assert found.differences["tail"] == pytest.approx(rows(0.3))


def test_a_mean_that_only_the_far_stretch_reaches() -> None:
    """From 0.5 down to 0.1: 0.2 is at three quarters between 4 and 16."""
    front = front_of([FRONT[0], point(rows(16.0), rows(0.1), rows(0.0))])
    found = match(point(rows(1.0), rows(0.2), rows(0.0)), front, "mean", ("drift",), DRAWS)
    assert found.differences["drift"] == pytest.approx(rows(1.0 - 13.0))


@pytest.mark.parametrize(("axis", "drift", "mean"), [("drift", 0.9, 0.3), ("drift", 17.0, 0.3), ("mean", 2.0, 0.51)])
def test_no_match_outside_the_front(axis: str, drift: float, mean: float) -> None:
    found = match(point(rows(drift), rows(mean), rows(0.0)), front_of(FRONT), axis, ("tail",), DRAWS)  # type: ignore[arg-type]
    assert found.differences == {}
    assert found.reason is not None
    assert "outside the front's" in found.reason
    assert found.outside == 1.0


def test_a_resample_outside_takes_the_end_and_is_counted() -> None:
    """Half a nat counts as one, where the front begins: tail -0.6."""
    setting = point(rows(2.0, 2.0, 0.5, 2.0), rows(0.3), rows(0.0))
    found = match(setting, front_of(FRONT), "drift", ("tail",), DRAWS)
    assert found.outside == 0.5
    assert found.differences["tail"] == pytest.approx(rows(0.4, 0.4, 0.6, 0.4))


def test_points_are_sorted_in_every_resample() -> None:
    """Two points change places in the third row; the front is the same line from 1 to 4."""
    front = front_of(
        [
            point(rows(1.0, 1.0, 4.0, 1.0), rows(0.0), rows(10.0, 10.0, 40.0, 10.0)),
            point(rows(4.0, 4.0, 1.0, 4.0), rows(0.0), rows(40.0, 40.0, 10.0, 40.0)),
        ]
    )
    found = match(point(rows(2.0), rows(0.0), rows(0.0)), front, "drift", ("tail",), DRAWS)
    assert found.differences["tail"] == pytest.approx(rows(-25.0))


def test_a_front_of_one_point_or_that_stands_still() -> None:
    assert first_crossing(np.ones((1, 1)), np.ones(1), np.full((1, 1), 7.0)).tolist() == [7.0]
    assert first_crossing(np.ones((1, 2)), np.ones(1), np.array([[7.0, 9.0]])).tolist() == [7.0]
    one = front_of(FRONT[:1])
    assert match(FRONT[1], one, "drift", ("tail",), DRAWS).reason is not None


def test_a_drift_of_nothing() -> None:
    """Its logarithm is kept finite."""
    found = match(point(rows(0.0), rows(0.0), rows(0.0)), front_of(FRONT), "drift", ("tail",), DRAWS)
    assert found.reason is not None
    front = front_of([point(rows(0.0), rows(0.0), rows(0.0)), FRONT[1]])
    assert np.isfinite(match(FRONT[1], front, "drift", ("tail",), DRAWS).differences["tail"]).all()


def test_resamples_do_not_include_the_seeds_alone() -> None:
    draws = Draws(np.ones((4, 1)), np.ones((4, 3)))
    assert draws.resampled(rows(1.0, 2.0, 3.0, 4.0)).tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0] * 99, 2 * 1 / 100),  # never at or beyond zero: still not 0
        ([-1.0] * 99, 2 * 1 / 100),
        ([1.0] * 95 + [-1.0] * 4, 2 * 5 / 100),
        ([1.0] * 90 + [0.0] * 5 + [-1.0] * 4, 2 * 10 / 100),
        ([1.0, -1.0] * 5, 1.0),
        ([0.0] * 9, 1.0),
    ],
)
def test_p_values(differences: list[float], expected: float) -> None:
    assert p_value(np.array(differences)) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    """Of 0.01, 0.04, 0.03, 0.005: 4 * 0.005 = 0.02; 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; 0.04 may not be less."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]) == []


def test_the_middle_of_a_stretch_is_geometric() -> None:
    target = np.array([math.log(3.0)])
    position = np.log(np.array([[1.0, 9.0]]))
    assert first_crossing(position, target, np.array([[0.0, 1.0]])).item() == pytest.approx(0.5)
