"""Reading a front at a drift, and comparing methods world by world."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.world.fronts import compared, crossing

POSITION = np.array([[0.0, 1.0, 2.0], [0.5, 2.0, 1.0], [2.0, 3.0, 4.0]])
FIGURE = np.array([[10.0, 20.0, 40.0], [0.0, 3.0, 9.0], [1.0, 1.0, 1.0]])


def test_a_front_is_read_where_it_first_meets_the_target() -> None:
    """At 1.5: halfway between 1 and 2 in the first world (30), two thirds from 0.5 to 2 in the second (2) whatever it
    does afterwards; the third begins beyond."""
    found = crossing(POSITION, 1.5, FIGURE)
    assert found[:2].tolist() == pytest.approx([30.0, 2.0])
    assert math.isnan(found[2])


def test_a_target_on_a_point() -> None:
    assert crossing(POSITION, 2.0, FIGURE).tolist() == pytest.approx([40.0, 3.0, 1.0])


def test_a_front_that_stands_still() -> None:
    assert math.isnan(crossing(np.ones((1, 3)), 1.0, FIGURE[:1])[0])


def test_methods_are_compared_world_by_world() -> None:
    """Differences 1 and 3: mean 2, standard deviation sqrt 2, standard error 1."""
    assert compared(np.array([11.0, 23.0]), np.array([10.0, 20.0])) == pytest.approx((17.0, 2.0, 1.0))


@pytest.mark.parametrize("missing", [0, 1])
def test_no_average_over_those_that_came_so_far(missing: int) -> None:
    both = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    both[missing][1] = math.nan
    assert compared(*both) is None
