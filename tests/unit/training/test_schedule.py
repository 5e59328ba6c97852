from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import OptimConfig
from pipeline.training.schedule import learning_rate


def rates(total: int, **options: object) -> list[float]:
    optim = OptimConfig(**({"lr": 2.0, "warmup_steps": 0} | options))
    return [learning_rate(optim, step, total) for step in range(total)]


def test_by_hand() -> None:
    assert rates(6, warmup_steps=2) == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0, 0.5])
    assert rates(4, schedule="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(4, schedule="cosine") == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932])
    assert rates(4, schedule="constant", warmup_steps=1) == [2.0] * 4


@given(st.integers(1, 60), st.integers(0, 80), st.sampled_from(["linear", "cosine", "constant"]))
def test_it_rises_then_falls_and_every_step_moves(total: int, warmup: int, schedule: str) -> None:
    values = rates(total, warmup_steps=warmup, schedule=schedule)
    assert all(0 < value <= 2.0 for value in values)
    top = min(warmup, total)
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_a_step_beyond_the_last_does_not_go_below_zero() -> None:
    for schedule in ("linear", "cosine"):
        optim = OptimConfig(lr=1.0, warmup_steps=0, schedule=schedule)
        assert learning_rate(optim, 10, 10) == pytest.approx(0.0)
        assert learning_rate(optim, 15, 10) == pytest.approx(0.0)
