from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run, sweep_of, trials_of

from pipeline.config import SweepConfig
from pipeline.sweep.search import ListSearch, OptunaSearch
from pipeline.sweep.space import Trial

SPACE = ({"risk.level": {"low": 0.05, "high": 1.0}, "loss.beta": {"low": 0.01, "high": 1.0, "log": True}},)


def optuna(settings: int, *parts: dict, seeds: tuple[int, ...] = (0,), search_seed: int = 0) -> SweepConfig:
    space = parts or SPACE
    return sweep_of(*space, search="optuna", settings=settings, seeds=seeds, search_seed=search_seed)


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


@pytest.mark.parametrize("known", [0, 1, 4, 7, 11])
def test_a_resumed_search_goes_on_as_it_would_have(known: int) -> None:
    whole = run_out(OptunaSearch(base_run(), optuna(12), {}))
    resumed = OptunaSearch(base_run(), optuna(12), {trial.number: worth(trial) for trial in whole[:known]})
    left = run_out(resumed)
    assert left == whole[known:]
    assert resumed.trials == whole, "what was known is listed too"


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
    search.tell(second, 0.0)
    search.tell(first, 1.0)
    assert search.next() is not None
    assert search.exhausted()


def test_a_union_of_spaces() -> None:
    """Both parts come up, and a trial has the options of its own part only."""
    parts = ({"loss.method": ["dpo"], "loss.beta": [0.1, 0.2]}, {"loss.method": ["ra_dpo2"], "risk.level": [0.5, 0.9]})
    trials = run_out(OptunaSearch(base_run(), optuna(12, *parts), {}))
    assert {trial.run.loss.method for trial in trials} == {"dpo", "ra_dpo2"}
    for trial in trials:
        own = {"loss.method", "loss.beta"} if trial.run.loss.method == "dpo" else {"loss.method", "risk.level"}
        assert set(trial.options) == own
