"""When a step is bad, and what is remembered of it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import GuardConfig
from pipeline.training.guard import GuardState, is_spike, rolled_back, skip, take
from pipeline.training.state import LoopState

CONFIG = GuardConfig(spike_window=8, spike_deviations=10.0)
CALM = (0.6, 0.62, 0.58, 0.61, 0.6, 0.59, 0.63, 0.6)


def test_a_jump_is_a_spike() -> None:
    assert is_spike(1.5, CALM, CONFIG)
    assert not is_spike(0.7, CALM, CONFIG)
    assert not is_spike(0.0, CALM, CONFIG), "a fall is none"


def test_nothing_is_judged_before_the_window_is_full() -> None:
    assert not is_spike(1e9, CALM[:-1], CONFIG)


def test_ripples_of_a_flat_curve_are_none() -> None:
    assert not is_spike(0.6001, (0.6,) * 8, CONFIG)
    assert is_spike(0.7, (0.6,) * 8, CONFIG)


def test_a_spike_never_becomes_the_measure() -> None:
    state = GuardState(losses=CALM)
    for step in range(20):
        state = take(state, step, 5.0, CONFIG)
    assert state.spikes == tuple(range(20))
    assert state.losses == CALM


@given(st.lists(st.floats(0, 5), max_size=60))
def test_only_the_window_is_remembered(losses: list[float]) -> None:
    state = GuardState()
    for step, loss in enumerate(losses):
        state = take(state, step, loss, CONFIG)
    calm = [loss for step, loss in enumerate(losses) if step not in state.spikes]
    assert list(state.losses) == calm[-CONFIG.spike_window :]


def test_skips_are_counted_and_leave_the_losses_alone() -> None:
    state = skip(skip(GuardState(losses=CALM), 4), 9)
    assert state.skipped == (4, 9)
    assert state.losses == CALM


def test_rates_fall_with_every_roll_back() -> None:
    good, now = GuardState(skipped=(1,), losses=CALM), GuardState(skipped=(1, 7), lr_scale=0.5, roll_backs=1)
    after = rolled_back(good, now, CONFIG)
    assert (after.lr_scale, after.roll_backs, after.skipped) == (0.25, 2, (1,))


@given(
    st.builds(
        GuardState,
        skipped=st.lists(st.integers(0, 99)).map(tuple),
        spikes=st.lists(st.integers(0, 99)).map(tuple),
        losses=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        lr_scale=st.floats(0.01, 1),
        roll_backs=st.integers(0, 3),
    )
)
def test_a_state_survives_json_to_the_last_bit(guard: GuardState) -> None:
    state = LoopState(7, 1.25, guard)
    assert LoopState.from_json(json.loads(json.dumps(state.to_json()))) == state
