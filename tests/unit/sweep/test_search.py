from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run, sweep_of, trials_of

from pipeline.sweep.search import ListSearch, OptunaSearch
from pipeline.sweep.space import Trial, drawn
from pipeline.sweep_config import SweepConfig

SPACE = ({"risk.level": {"low": 0.05, "high": 1.0}, "loss.beta": {"low": 0.01, "high": 1.0, "log": True}},)


def optuna(count: int, *parts: Mapping[str, Any], seeds: tuple[int, ...] = (0,), search_seed: int = 0) -> SweepConfig:
    return sweep_of(*(parts or SPACE), search="optuna", settings=count, seeds=seeds, search_seed=search_seed)


def worth(trial: Trial) -> float:
    """Best at level 0.3 and beta 0.1."""
    return -((trial.run.risk.level - 0.3) ** 2) - math.log10(trial.run.loss.beta / 0.1) ** 2


def run_out(search: OptunaSearch, told: dict[int, float | None] | None = None) -> list[Trial]:
    """Every trial that is handed out, each told at once."""
    handed = []
    while (trial := search.next()) is not None:
        handed.append(trial)
        value = worth(trial) if told is None else told[trial.number]
        search.tell(trial, value)
    return handed


def test_a_list_is_handed_out_once_in_its_order() -> None:
    trials = trials_of([{"loss.beta": 0.1}, {"loss.beta": 0.2}])
    search = ListSearch(trials)
    assert not search.exhausted()
    assert [search.next(), search.next(), search.next()] == [*trials, None]
    assert search.exhausted()


def test_a_search_goes_where_it_is_better() -> None:
    """The last ten of thirty settings are better than the first ten, which are drawn blindly, for each of five
    seeds."""
    for seed in range(5):
        values = [worth(trial) for trial in run_out(OptunaSearch(base_run(), optuna(30, search_seed=seed), {}))]
        assert len(values) == 30
        assert sorted(values[20:])[5] > sorted(values[:10])[5]


def test_it_finds_the_better_half_more_often_than_chance() -> None:
    """Two of the four levels are good. Of what the search tries once it has something to go by, far more than half is;
    of what is drawn, about half."""
    levels = {"risk.level": [0.2, 0.4, 0.6, 0.8]}
    shares = []
    for seed in range(8):
        search = OptunaSearch(base_run(), optuna(16, levels, search_seed=seed), {})
        trials = []
        while (trial := search.next()) is not None:
            trials.append(trial)
            search.tell(trial, float(trial.run.risk.level < 0.5))
        shares += [trial.run.risk.level < 0.5 for trial in trials[5:]]
    blind = [
        one["risk.level"] < 0.5
        for seed in range(8)
        for one in drawn(sweep_of(levels, search="random", settings=11, search_seed=seed))
    ]
    assert sum(blind) / len(blind) < 0.65
    assert sum(shares) / len(shares) > 0.75


UNION = (
    {"loss.method": ["dpo"], "loss.beta": {"low": 0.01, "high": 1.0, "log": True}},
    {"loss.method": ["ra_dpo1", "ra_dpo2"], "risk.level": [0.9, 0.5, 0.3]},
)


@functools.cache
def uninterrupted(union: bool, seeds: tuple[int, ...], failing: frozenset[int]) -> tuple[list[Trial], dict[int, Any]]:
    """All trials of a search of ten settings with one run at a time, and what each was worth."""
    search = OptunaSearch(base_run(), optuna(10, *(UNION if union else SPACE), seeds=seeds), {})
    trials: list[Trial] = []
    told: dict[int, float | None] = {}
    while (trial := search.next()) is not None:
        trials.append(trial)
        told[trial.number] = None if trial.number in failing else worth(trial)
        search.tell(trial, told[trial.number])
    return trials, told


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from([(0,), (4, 2), (0, 1, 2)]),
    st.sampled_from([frozenset[int](), frozenset({0, 3, 4})]),
)
def test_a_resumed_search_goes_on_as_it_would_have(
    done: int, union: bool, seeds: tuple[int, ...], failing: frozenset[int]
) -> None:
    """Whenever it is interrupted, between the seeds of a setting too, and whatever was ended early."""
    whole, told = uninterrupted(union, seeds, failing)
    done = min(done, len(whole))
    config = optuna(10, *(UNION if union else SPACE), seeds=seeds)
    resumed = OptunaSearch(base_run(), config, {number: told[number] for number in range(done)})
    assert resumed.exhausted() == (done == len(whole))
    assert run_out(resumed, told) == whole[done:]
    assert resumed.trials == whole, "what was known is listed too"


class TestOutcomesKeepTheirSettings:
    """What is known of a trial, by its number, is told of the setting that it was run with."""

    def resumed(self, first: OptunaSearch, config: SweepConfig, gone: frozenset[int] = frozenset()) -> list[Trial]:
        known = {trial.number: worth(trial) for trial in first.trials if trial.number not in gone}
        search = OptunaSearch(base_run(), config, known, json.loads(json.dumps(first.params)))
        run_out(search)
        return search.trials[: len(first.trials)]

    def test_when_more_settings_are_asked_for(self) -> None:
        first = OptunaSearch(base_run(), optuna(12), {})
        run_out(first)
        assert self.resumed(first, optuna(30)) == first.trials

    def test_when_a_failed_trial_is_tried_again(self) -> None:
        search, before = OptunaSearch(base_run(), optuna(12), {}), []
        while (trial := search.next()) is not None:
            before.append(trial)
            search.tell(trial, None if trial.number == 5 else worth(trial))
        assert self.resumed(search, optuna(12), frozenset({5})) == before

    def test_when_several_ran_side_by_side(self) -> None:
        search = OptunaSearch(base_run(), optuna(12), {})
        before: list[Trial] = []
        running: list[Trial] = []
        while running or not search.exhausted():
            while len(running) < 2 and (trial := search.next()) is not None:
                running.append(trial)
                before.append(trial)
            search.tell(running[0], worth(running.pop(0)))
        assert self.resumed(search, optuna(12)) == before


def test_any_seed_that_the_configuration_takes() -> None:
    assert len(run_out(OptunaSearch(base_run(), optuna(3, search_seed=20_261_126), {}))) == 3


def test_every_setting_is_run_with_every_seed_and_told_by_the_mean() -> None:
    search = OptunaSearch(base_run(), optuna(6, seeds=(3, 5)), {})
    trials = run_out(search)
    assert [trial.number for trial in trials] == list(range(12))
    assert [trial.seed for trial in trials] == [3, 5] * 6
    assert all(one.options == other.options for one, other in zip(trials[::2], trials[1::2], strict=True))
    means = [trial.value for trial in search._study.trials]
    assert means == pytest.approx([worth(trial) for trial in trials[::2]])


def test_a_setting_with_a_failed_trial_counts_for_nothing() -> None:
    told: dict[int, float | None] = dict.fromkeys(range(8), 1.0)
    told[2] = None
    search = OptunaSearch(base_run(), optuna(4, seeds=(0, 1)), {})
    assert len(run_out(search, told)) == 8
    assert [trial.state.name for trial in search._study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert search.exhausted()


def test_side_by_side_the_next_is_asked_for_before_the_first_has_ended() -> None:
    search = OptunaSearch(base_run(), optuna(3), {})
    first, second = search.next(), search.next()
    assert first is not None
    assert second is not None
    assert first.options != second.options
    assert not search.exhausted()
    search.tell(second, 0.0)
    search.tell(first, 1.0)
    assert search.next() is not None
    assert search.exhausted()
    assert search.next() is None


def test_a_union_of_spaces() -> None:
    """Both parts come up, and a trial has the options of its own part only."""
    parts = ({"loss.method": ["dpo"], "loss.beta": [0.1, 0.2]}, {"loss.method": ["ra_dpo2"], "risk.level": [0.5, 0.9]})
    trials = run_out(OptunaSearch(base_run(), optuna(12, *parts), {}))
    assert {trial.run.loss.method for trial in trials} == {"dpo", "ra_dpo2"}
    for trial in trials:
        own = {"loss.method", "loss.beta"} if trial.run.loss.method == "dpo" else {"loss.method", "risk.level"}
        assert set(trial.options) == own
