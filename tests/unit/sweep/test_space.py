"""From a space to the runs of a sweep: order, draws, what is the same, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run, sweep_of, trials_of

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.sweep.job import base_run as shared_run
from pipeline.sweep.job import checked_plan, planned_trials
from pipeline.sweep.space import check_space, checked_run, drawn, grid, made_trials, on_share, renumbered, setting_name
from pipeline.sweep_config import SweepConfig

DPO = {"loss.method": ["dpo"], "loss.beta": [0.1, 0.3]}
RISKY = {"loss.method": ["ra_dpo1", "ra_dpo2"], "risk.level": [0.97, 0.5]}


def refused(sweep: SweepConfig, base: RunConfig | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        checked_plan((base or base_run()).model_copy(update={"sweep": sweep}))
    return str(caught.value)


class TestGrid:
    def test_the_last_option_moves_first_and_parts_come_one_after_the_other(self) -> None:
        assert grid(sweep_of(DPO, RISKY)) == [
            {"loss.method": "dpo", "loss.beta": 0.1},
            {"loss.method": "dpo", "loss.beta": 0.3},
            {"loss.method": "ra_dpo1", "risk.level": 0.97},
            {"loss.method": "ra_dpo1", "risk.level": 0.5},
            {"loss.method": "ra_dpo2", "risk.level": 0.97},
            {"loss.method": "ra_dpo2", "risk.level": 0.5},
        ]

    @settings(deadline=None)
    @given(
        st.lists(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=3)), max_size=3)
    )
    def test_every_combination_is_there_once(self, parts: list[dict[str, list[int]]]) -> None:
        found = grid(sweep_of(*parts))
        expected = [
            dict(zip(part, values, strict=True)) for part in parts for values in itertools.product(*part.values())
        ]
        assert found == expected

    def test_too_many(self) -> None:
        many = {f"train.{name}": list(range(1, 101)) for name in ("epochs", "batch_size", "max_steps")}
        assert "sweep.space: 1,000,000 combinations are too many" in refused(sweep_of(many))


class TestTrials:
    def test_numbers_go_on_over_settings_and_seeds(self) -> None:
        trials = trials_of(grid(sweep_of(DPO)), seeds=(3, 1))
        assert [trial.number for trial in trials] == [0, 1, 2, 3]
        assert [(trial.options["loss.beta"], trial.seed) for trial in trials] == [
            (0.1, 3),
            (0.1, 1),
            (0.3, 3),
            (0.3, 1),
        ]
        assert [(trial.run.loss.beta, trial.run.train.seed) for trial in trials] == [
            (0.1, 3),
            (0.1, 1),
            (0.3, 3),
            (0.3, 1),
        ]

    def test_what_a_method_does_not_read_makes_no_further_setting(self) -> None:
        space = {
            "loss.method": ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"],
            "loss.alpha": [0.5, 1.0],
            "risk.level": [0.9, 0.5],
        }
        trials = trials_of(grid(sweep_of(space)))
        assert [dict(trial.options) for trial in trials] == [
            {"loss.method": "dpo"},
            {"loss.method": "tdpo1"},
            {"loss.method": "tdpo2", "loss.alpha": 0.5},
            {"loss.method": "tdpo2", "loss.alpha": 1.0},
            {"loss.method": "ra_dpo1", "risk.level": 0.9},
            {"loss.method": "ra_dpo1", "risk.level": 0.5},
            *({"loss.method": "ra_dpo2", "loss.alpha": a, "risk.level": r} for a in (0.5, 1.0) for r in (0.9, 0.5)),
        ]
        assert [trial.number for trial in trials] == list(range(10))

    def test_a_level_that_the_measure_does_not_take_makes_no_further_setting(self) -> None:
        space = {"risk.measure": ["mean", "worst_case", "cvar"], "risk.level": [0.9, 0.5], "risk.weight": [0.1, 0.2]}
        names = [setting_name(trial.run, trial.options) for trial in trials_of(grid(sweep_of(space)))]
        assert names == ["ra_dpo2 kl", "ra_dpo2 worst_case", "ra_dpo2 cvar 0.9", "ra_dpo2 cvar 0.5"]

    def test_the_same_setting_in_two_parts_is_one(self) -> None:
        spelled_out = {"loss.method": ["ra_dpo2"], "risk.measure": ["cvar"], "risk.level": [0.5]}
        trials = trials_of(grid(sweep_of({"loss.method": ["ra_dpo2"]}, spelled_out, {"risk.level": [0.5, 0.50]})))
        assert [dict(trial.options) for trial in trials] == [{"loss.method": "ra_dpo2"}]

    def test_training_always_matters(self) -> None:
        trials = trials_of(
            grid(sweep_of({"loss.method": ["dpo"], "train.optim.lr": [1e-3, 2e-3], "train.epochs": [1, 2]}))
        )
        assert len(trials) == 4

    @pytest.mark.parametrize(
        "space",
        [
            {"loss.method": ["dpo", "ra_dpo2"]},
            {"loss.beta": [0.1, 0.3], "risk.level": [0.9, 0.5]},
            {"train.optim.schedule": ["linear", "cosine"]},
            {"train.max_steps": [None, 10], "train.guard.on_spike": ["log", "roll_back"]},
            {"risk.level": [0.5, 0.5000001]},
        ],
    )
    def test_names_tell_settings_apart(self, space: dict[str, Any]) -> None:
        trials = trials_of(grid(sweep_of(space)))
        assert len({trial.name for trial in trials}) == len(trials)

    def test_a_share_and_new_numbers_leave_the_trial_alone(self) -> None:
        trial = trials_of([{"risk.level": 0.9}], seeds=(4,))[0]
        small = on_share(trial, 0.1)
        assert (small.run.train.data_fraction, trial.run.train.data_fraction) == (0.1, 1.0)
        assert on_share(small, 1.0) == trial
        assert [one.number for one in renumbered([trial, trial])] == [0, 1]
        assert trial.judged_by("validation").run.evaluation.split == "validation"
        assert trial.run.evaluation.split == "test"


class TestDrawn:
    SPACE = (
        {"loss.method": ["dpo"], "loss.beta": {"low": 0.01, "high": 1, "log": True}},
        {"loss.method": ["ra_dpo1", "ra_dpo2"], "risk.level": {"low": 0.1, "high": 0.9}, "train.epochs": [1, 2, 3]},
    )

    def sweep(self, count: int, seed: int = 0) -> SweepConfig:
        return sweep_of(*self.SPACE, search="random", settings=count, search_seed=seed)

    @settings(deadline=None)
    @given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**70))
    def test_a_longer_list_begins_with_the_shorter_one(self, count: int, more: int, seed: int) -> None:
        assert drawn(self.sweep(count + more, seed))[:count] == drawn(self.sweep(count, seed))

    def test_another_process_draws_the_same(self) -> None:
        root = Path(__file__).resolve().parents[3]
        program = (
            "from pipeline.config import SweepConfig\n"
            "from pipeline.sweep.space import drawn\n"
            f"print(drawn(SweepConfig.model_validate({self.sweep(7, 3).model_dump(mode='json')!r})))\n"
        )
        shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
        assert shown.stdout.strip() == str(drawn(self.sweep(7, 3)))

    @settings(deadline=None)
    @given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans())
    def test_a_range_is_kept(self, one: float, other: float, log: bool) -> None:
        assume(one != other)
        low, high = sorted((one, other))
        part = {"loss.beta": {"low": low, "high": high, "log": log}}
        for found in drawn(sweep_of(part, search="random", settings=5)):
            assert low * (1 - 1e-12) <= found["loss.beta"] <= high * (1 + 1e-12)

    def test_seeds_draw_differently(self) -> None:
        assert drawn(self.sweep(5, 0)) != drawn(self.sweep(5, 1))

    def test_parts_and_values_come_up_evenly_and_within_their_ranges(self) -> None:
        found = drawn(self.sweep(1500))
        dpo = [one for one in found if one["loss.method"] == "dpo"]
        risky = [one for one in found if one["loss.method"] != "dpo"]
        assert 650 < len(dpo) < 850
        assert all(set(one) == set(self.SPACE[1]) for one in risky)
        assert all(0.01 <= one["loss.beta"] <= 1 for one in dpo)
        assert all(0.1 <= one["risk.level"] <= 0.9 for one in risky)
        assert 0.4 < sum(one["loss.beta"] < 0.1 for one in dpo) / len(dpo) < 0.6  # even in the logarithm
        assert 0.4 < sum(one["risk.level"] < 0.5 for one in risky) / len(risky) < 0.6
        for value in (1, 2, 3):
            assert 0.25 < sum(one["train.epochs"] == value for one in risky) / len(risky) < 0.42

    def test_drawn_twice_is_one_setting(self) -> None:
        sweep = sweep_of({"loss.method": ["dpo", "ra_dpo2"]}, search="random", settings=20)
        assert [trial.run.loss.method for trial in trials_of(drawn(sweep))] in (["dpo", "ra_dpo2"], ["ra_dpo2", "dpo"])


class TestRefusals:
    @pytest.mark.parametrize("parts", [(), ({},), ({"risk.level": [0.5]}, {})])
    def test_an_empty_space(self, parts: tuple[dict[str, Any], ...]) -> None:
        assert refused(sweep_of(*parts)).startswith("sweep.space is empty: name the options to vary")

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ({"risk.levle": [0.5]}, "sweep.space: unknown option risk.levle, did you mean risk.level?"),
            ({"level": [0.5]}, "unknown option level, did you mean risk.level?"),
            ({"zzz": [0.5]}, "sweep.space: unknown option zzz"),
            ({"loss": [0.5]}, "sweep.space: unknown option loss"),
            ({"train.seed": [0, 1]}, "train.seed is not searched; set sweep.seeds"),
            ({"data.path": ["a", "b"]}, "data.path cannot be varied: all runs of a sweep share data, model"),
            ({"reference.tier": ["hidden"]}, "reference.tier cannot be varied"),
            ({"evaluation.split": ["test"]}, "evaluation.split cannot be varied"),
            ({"sweep.seeds": [1]}, "sweep.seeds cannot be varied"),
            ({"risk.level": []}, "sweep.space: risk.level has no values"),
            ({"risk.level": {"low": 0.1, "high": 0.5}}, "risk.level has a range, of which a grid has no points"),
        ],
    )
    def test_an_option_that_cannot_be_searched(self, part: dict[str, Any], message: str) -> None:
        assert message in refused(sweep_of({"loss.beta": [0.1]}, part))

    @pytest.mark.parametrize("search", ["grid", "random", "optuna"])
    def test_the_combination_that_makes_no_run_is_named(self, search: str) -> None:
        part = {"risk.measure": ["cvar", "erm"], "risk.level": [0.5, 2.0]}
        more = {} if search == "grid" else {"settings": 50}
        assert refused(sweep_of(DPO, part, search=search, **more)) == (
            "sweep.space: risk.level: cvar takes a level in (0, 1], got 2; the tail mass kept: 1 is risk-neutral, "
            "smaller is more averse (in the combination risk.measure cvar, risk.level 2.0)"
        )

    @pytest.mark.parametrize("search", ["random", "optuna"])
    @pytest.mark.parametrize(("low", "high", "wrong"), [(-0.1, 0.5, "-0.1"), (0.5, 1.5, "1.5")])
    def test_an_end_of_a_range_that_makes_no_run_is_named(
        self, search: str, low: float, high: float, wrong: str
    ) -> None:
        found = refused(sweep_of({"risk.level": {"low": low, "high": high}}, search=search, settings=1))
        assert f"got {wrong};" in found
        assert f"(in the combination risk.level {wrong})" in found

    def test_a_wrong_value_is_named_with_its_option(self) -> None:
        assert refused(sweep_of({"loss.beta": [0.1, -1], "loss.method": ["dpo"]})) == (
            "sweep.space: loss.beta: must be above 0, got -1 (in the combination loss.beta -1, loss.method dpo)"
        )

    def test_the_reference_must_hold_what_every_setting_needs(self) -> None:
        base = base_run(reference={"tier": "scalar"}, loss={"method": "dpo"})
        found = refused(sweep_of({"loss.method": ["dpo", "ra_dpo2"]}), base)
        assert "holds one number per response, but loss.method 'ra_dpo2'" in found
        assert "(in the combination loss.method ra_dpo2)" in found

    def test_what_can_be_searched_passes(self) -> None:
        check_space(sweep_of(DPO, RISKY, {"train.optim.lr": [1e-3], "train.max_steps": [None, 3]}))
        check_space(sweep_of({"risk.level": {"low": 0.1, "high": 0.5}}, search="random", settings=1))

    @pytest.mark.parametrize("search", ["random", "optuna"])
    def test_a_large_space_can_be_drawn_from(self, search: str) -> None:
        ten = list(range(1, 11))
        large = {"train.epochs": ten, "train.batch_size": ten, "train.micro_batch_size": ten, "train.max_steps": ten}
        checked_plan(base_run(sweep=sweep_of(large, {"loss.beta": [0.1]}, search=search, settings=3).model_dump()))

    def test_a_range_of_a_whole_number_is_refused_before_anything_runs(self) -> None:
        for name in ("train.epochs", "train.max_steps"):
            found = refused(sweep_of({name: {"low": 1, "high": 4}}, search="optuna", settings=3))
            assert found == f"sweep.space: {name} has a range, but takes no fractions: give a list of values"


class TestRun:
    def test_the_base_is_left_alone_and_the_sweep_is_left_out(self) -> None:
        base = base_run(sweep=sweep_of(DPO, seeds=[1, 2]).model_dump())
        before = base.model_dump()
        run = checked_run(base, {"loss.method": "dpo", "train.optim.lr": 1e-5}, 7)
        assert base.model_dump() == before
        assert (run.loss.method, run.train.optim.lr, run.train.seed) == ("dpo", 1e-5, 7)
        assert run.sweep == SweepConfig()
        changed = {"loss": run.loss, "train": run.train, "sweep": run.sweep}
        assert run == base.model_copy(update=changed)

    def test_the_base_as_it_is(self) -> None:
        base = base_run(evaluation={"seeds": [3, 5], "scorers": ["vader", "length"]}, train={"seed": 2})
        assert checked_run(base, {}, 2) == base

    def test_all_are_judged_by_the_sweeps_split(self) -> None:
        sweep = sweep_of(DPO, split="validation")
        base = base_run(sweep=sweep.model_dump())
        shared, trials = checked_plan(base)
        assert shared == shared_run(base, "validation")
        assert trials is not None
        assert {trial.run.evaluation.split for trial in trials} == {"validation"}
        assert base.evaluation.split == "test"

    def test_only_optuna_finds_them_as_it_goes(self) -> None:
        base = base_run()
        assert planned_trials(base, sweep_of(DPO, search="optuna", settings=4)) is None
        assert len(planned_trials(base, sweep_of(DPO, search="random", settings=9)) or ()) == 2
        assert planned_trials(base, sweep_of(DPO)) == made_trials(base, grid(sweep_of(DPO)), [0])
