"""The rounds of a sweep, with trials whose results are made by hand instead of run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run, ended, finished, sweep_of

from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, EvaluationError
from pipeline.storage import Folder
from pipeline.sweep.job import Swept, _Sweep, checked_plan
from pipeline.sweep.judged import Judged, Ran
from pipeline.sweep.space import Trial, check_pilot
from pipeline.sweep_config import SweepConfig

BETAS = (0.1, 0.2, 0.3, 0.4)


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class MadeSweep(_Sweep):
    """A sweep whose rounds are made by hand; ``figures`` are those of a trial, None for one that fails."""

    def __init__(self, storage: Path, pilot: float | None, figures: Any, **sweep: Any) -> None:
        space = sweep.pop("space", {"loss.beta": list(BETAS)})
        self.base, self.trials = checked_plan(base_run(sweep=sweep_of(space, **sweep).model_dump()))
        run = self.base.model_copy(update={"sweep": sweep_of(space, **sweep)})
        self.said = Said()
        super().__init__(JobRequest("made", None, False, run, pilot), storage, None, self.said)  # type: ignore[arg-type]
        self.storage, self.figures = storage, figures
        self.rounds: list[tuple[RunConfig, list[Trial]]] = []
        self.published: tuple[list[Ran], Judged, Judged | None, Mapping[str, Any] | None] | None = None

    def all(self) -> Swept:
        return self.run(self.base, self.trials)

    def _round(self, base: RunConfig, trials: Sequence[Trial] | None, config: SweepConfig) -> Any:
        assert trials is not None
        assert [trial.number for trial in trials] == list(range(len(trials)))
        self.rounds.append((base, list(trials)))
        ran = []
        for trial in trials:
            figures = self.figures(trial)
            folder = self.storage / str(len(self.rounds))
            ran.append(ended(trial, "failed", "why") if figures is None else finished(folder, trial, **figures))
        return SimpleNamespace(folder=Folder(self.storage), train_pairs=lambda store, share: 7), ran

    def _publish(self, phase: Any, ran: Any, judged: Any, tested: Any, pilot: Any) -> None:
        self.published = ran, judged, tested, pilot


def gains(trial: Trial) -> dict[str, Any]:
    """More with more beta."""
    return {"mean": 0.1 + trial.run.loss.beta}


def test_chosen_and_runner_up_are_judged_by_the_test_split(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, None, gains, seeds=[3, 5])
    assert sweep.all().chosen
    (whole, _), (base, tested) = sweep.rounds
    assert (whole.evaluation.split, base.evaluation.split) == ("validation", "test")
    assert [(trial.run.loss.beta, trial.seed) for trial in tested] == [(0.4, 3), (0.4, 5), (0.3, 3), (0.3, 5)]
    assert {trial.run.evaluation.split for trial in tested} == {"test"}
    assert sweep.published is not None
    assert sweep.published[2] is not None
    assert [len(setting.runs) for setting in sweep.published[2].settings] == [2, 2]


def test_a_study_judges_all_by_the_test_split_and_chooses_nothing(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, None, gains, split="test", tolerance={"max_drift": 0.1})
    assert sweep.all().chosen, "nothing was to be chosen"
    assert [base.evaluation.split for base, _ in sweep.rounds] == ["test"]
    assert sweep.published is not None
    assert sweep.published[2] is None


def test_without_a_choice_the_test_split_stays_unseen(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, None, gains, tolerance={"max_drift": 0.1})
    assert not sweep.all().chosen
    assert len(sweep.rounds) == 1
    assert "no setting keeps every limit: nothing is chosen" in sweep.said.lines


def test_failed_trials_are_left_out_and_said(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, None, lambda trial: None if trial.run.loss.beta == 0.4 else gains(trial))
    sweep.all()
    assert "1 trial(s) failed; the same command tries these again" in sweep.said.lines
    assert [trial.run.loss.beta for trial in sweep.rounds[1][1]] == [0.3, 0.2]


def test_without_a_finished_trial_the_reasons_are_the_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none of the 4 trial\(s\) finished: why"):
        MadeSweep(tmp_path, None, lambda trial: None).all()


class TestPilot:
    def test_a_share_of_the_settings_is_repeated_on_everything(self, tmp_path: Path) -> None:
        sweep = MadeSweep(tmp_path, 0.1, gains, seeds=[0, 1], pilot_keep=0.5)
        sweep.all()
        (small_base, small), (base, again), _ = sweep.rounds
        assert small_base.train.data_fraction == 0.1
        assert {trial.run.train.data_fraction for trial in small} == {0.1}
        assert [trial.run.loss.beta for trial in small] == [beta for beta in BETAS for _ in (0, 1)]
        assert base == sweep.base
        assert {trial.run.train.data_fraction for trial in again} == {1.0}
        assert [(trial.run.loss.beta, trial.seed) for trial in again] == [(0.3, 0), (0.3, 1), (0.4, 0), (0.4, 1)]
        assert sweep.published is not None
        facts = sweep.published[3]
        assert facts is not None
        assert (facts["fraction"], facts["pairs"], facts["settings"]) == (0.1, 7, 4)
        assert facts["same_choice"] is True

    def test_a_setting_of_which_one_seed_failed_is_repeated_with_all(self, tmp_path: Path) -> None:
        def figures(trial: Trial) -> dict[str, Any] | None:
            lost = trial.run.train.data_fraction < 1 and trial.run.loss.beta == 0.4 and trial.seed == 0
            return None if lost else gains(trial)

        sweep = MadeSweep(tmp_path, 0.1, figures, seeds=[0, 1])
        sweep.all()
        assert [(trial.run.loss.beta, trial.seed) for trial in sweep.rounds[1][1]][2:] == [(0.4, 0), (0.4, 1)]

    def test_a_share_that_is_searched_has_no_pilot(self) -> None:
        with pytest.raises(ConfigError, match="which a pilot sets itself"):
            check_pilot(sweep_of({"train.data_fraction": [0.5, 1.0]}))
