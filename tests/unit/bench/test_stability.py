"""The curves of several trainings, and how far they lie apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench.stability import curves_of, draw, largest_differences

ROWS = [
    {"split": "train", "step": 1, "loss": 0.7, "grad_norm": 2.0, "rejected_risk": 0.1},
    {"split": "validation", "step": 1, "loss": 9.0},
    {"split": "skipped", "step": 2, "fault": "loss"},
    {"split": "train", "step": 3, "loss": 0.5, "grad_norm": 1.0, "rejected_risk": 0.2},
]


def test_a_step_left_out_repeats_the_one_before() -> None:
    curves = curves_of(ROWS)
    assert curves["loss"] == [0.7, 0.7, 0.5]
    assert curves["skipped"] == [0.0, 1.0, 1.0]


def test_the_largest_difference_of_any_two() -> None:
    curves = {1: curves_of(ROWS), 2: curves_of([*ROWS[:3], ROWS[3] | {"loss": 0.4}]), 3: curves_of(ROWS)}
    assert largest_differences(curves)["loss"] == pytest.approx(0.1)
    assert largest_differences(curves)["skipped"] == 0.0


def test_trainings_of_different_lengths_are_a_fault() -> None:
    with pytest.raises(ValueError, match="zip"):
        largest_differences({1: curves_of(ROWS), 2: curves_of(ROWS[:1])})


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    draw({1: curves_of(ROWS), 2: curves_of(ROWS)}, tmp_path / "docs" / "figure.png")
    assert (tmp_path / "docs" / "figure.png").read_bytes().startswith(b"\x89PNG")
