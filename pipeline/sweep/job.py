"""The sweep job: trials, a choice by the tolerance, the chosen ones on the test split, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.realign_config import RealignConfig
from pipeline.sweep.space import (
    Options,
    Trial,
    check_pilot,
    check_space,
    drawn,
    grid,
    made_trials,
    on_share,
    renumbered,
    try_corners,
)
from pipeline.sweep_config import SweepConfig

if TYPE_CHECKING:
    from pipeline.artifacts import Store
    from pipeline.console import Console
    from pipeline.storage import Folder, Storage
    from pipeline.sweep.judged import Judged, Ran
    from pipeline.sweep.phase import Phase

EXIT_NONE = 3


@dataclass(frozen=True)
class Swept:
    """What a sweep left."""

    folder: Folder
    ran: Sequence[Ran]
    """The trials of the round that was chosen from."""
    chosen: bool
    """Whether a setting keeps every limit; True too where nothing is to be chosen."""
    best: Options | None = None
    """The options of the chosen setting, if one was chosen."""


def sweep(request: JobRequest) -> int:
    """Run (or, with ``dry_run``, only describe) a sweep; returns the exit code: 0, or 3 when no setting keeps every
    limit. Raises as `run_sweep`."""
    if not request.dry_run:
        return 0 if run_sweep(request).chosen else EXIT_NONE
    from pipeline.job import storage_of
    from pipeline.sweep.show import show_plan

    base, trials = checked_plan(request.run)
    show_plan(request, base, trials, storage_of(request))
    return 0


def run_sweep(request: JobRequest) -> Swept:
    """Run a sweep to its report.

    Raises:
        ConfigError: for a space that cannot be searched, before anything runs.
        EvaluationError: when no trial finished.
    """
    base, trials = checked_plan(request.run)
    if request.pilot is not None:
        check_pilot(request.run.sweep)
    from pipeline.job import opened, storage_of

    storage = storage_of(request)
    with opened(request, storage, "sweep", "sweep") as (store, console):
        return _Sweep(request, storage, store, console).run(base, trials)


def checked_plan(run: RunConfig) -> tuple[RunConfig, list[Trial] | None]:
    """What all trials share, and the trials as far as they are known.

    Raises:
        ConfigError: for a space that cannot be searched.
    """
    check_space(run.sweep)
    base = base_run(run, run.sweep.split)
    return base, planned_trials(base, run.sweep)


def base_run(run: RunConfig, split: str) -> RunConfig:
    """What all trials share, judged by a split; a trial is no release."""
    evaluation = run.evaluation.model_copy(update={"split": split})
    registry = run.registry.model_copy(update={"enabled": False})
    others = {"sweep": SweepConfig(), "realign": RealignConfig()}
    return run.model_copy(update={"evaluation": evaluation, "registry": registry, **others})


def planned_trials(base: RunConfig, config: SweepConfig) -> list[Trial] | None:
    """The trials that are known beforehand; None for a search that finds them as it goes.

    Raises:
        ConfigError: for a combination that makes no run.
    """
    if config.search == "grid":
        return made_trials(base, grid(config), config.seeds)
    try_corners(base, config)
    return None if config.search == "optuna" else made_trials(base, drawn(config), config.seeds)


class _Sweep:
    """One call of the job."""

    def __init__(self, request: JobRequest, storage: Storage, store: Store, console: Console) -> None:
        self._request, self._storage, self._store, self._console = request, storage, store, console
        self._config = request.run.sweep
        self._began = time.monotonic()

    def run(self, base: RunConfig, trials: Sequence[Trial] | None) -> Swept:
        """All rounds, the choice, and the report."""
        from pipeline.sweep.pilot import held_against

        pilot: tuple[Judged, dict[str, Any]] | None = None
        if self._request.pilot is not None:
            trials, kept, facts = self._pilot(base, trials, self._request.pilot)
            pilot = kept, facts
        phase, ran = self._round(base, trials, self._config)
        judged = self._judge(ran)
        said = None if pilot is None else pilot[1] | held_against(pilot[0], judged)
        self._say_choice(judged)
        tested = self._tested(judged) if self._config.split == "validation" else None
        self._publish(phase, ran, judged, tested, said)
        best = None if judged.choice.best is None else judged.trials[judged.choice.best][0].trial.options
        return Swept(phase.folder, ran, best is not None or self._config.split == "test", best)

    def _round(self, base: RunConfig, trials: Sequence[Trial] | None, config: SweepConfig) -> tuple[Phase, list[Ran]]:
        from pipeline.job import recipe_name
        from pipeline.sweep.phase import Phase

        phase = Phase(recipe_name(self._request), base, config, self._storage, trials)
        return phase, phase.run(self._store, self._console)

    def _judge(self, ran: Sequence[Ran]) -> Judged:
        from pipeline.errors import EvaluationError
        from pipeline.sweep.judged import judge

        if all(one.outcome.summary is None for one in ran):
            reasons = ", ".join(dict.fromkeys(one.outcome.reason or one.outcome.state for one in ran))
            raise EvaluationError(f"none of the {len(ran)} trial(s) finished: {reasons or 'there is none'}")
        if failed := sum(one.outcome.state == "failed" for one in ran):
            self._console.line(f"{failed} trial(s) failed; the same command tries these again")
        return judge(ran, self._config.tolerance)

    def _pilot(
        self, base: RunConfig, trials: Sequence[Trial] | None, share: float
    ) -> tuple[list[Trial], Judged, dict[str, Any]]:
        """Everything on a share of the training groups: what to repeat on all of them, the kept settings as the pilot
        judged them, and what the report says of it."""
        from pipeline.sweep.pilot import pilot_facts, promising

        share *= base.train.data_fraction
        self._console.line(f"pilot: everything on {share:.0%} of the training groups")
        small = None if trials is None else [on_share(trial, share) for trial in trials]
        train = base.train.model_copy(update={"data_fraction": share})
        phase, ran = self._round(base.model_copy(update={"train": train}), small, self._config)
        judged = self._judge(ran)
        kept = promising(judged.settings, judged.choice, self._config.tolerance, self._config.pilot_keep)
        self._console.line(
            f"pilot: {len(kept)} of {len(judged.settings)} settings go on to all of the data: "
            + "; ".join(judged.name(index) for index in kept)
        )
        again = {tuple(judged.trials[index][0].trial.options.items()) for index in kept}
        every = [one.trial for one in ran if tuple(one.trial.options.items()) in again]
        repeated = renumbered([on_share(trial, base.train.data_fraction) for trial in every])
        return repeated, judged, pilot_facts(judged, kept, share, phase.train_pairs(self._store, share))

    def _say_choice(self, judged: Judged) -> None:
        from pipeline.sweep.show import choice_lines

        for line in choice_lines(judged, self._config):
            self._console.line(line)

    def _tested(self, judged: Judged) -> Judged | None:
        """Chosen and runner-up, their policies as they are, judged by the test split."""
        from pipeline.sweep.judged import judge

        picked = [index for index in (judged.choice.best, judged.choice.runner_up) if index is not None]
        trials = [one.trial for index in picked for one in judged.trials[index]]
        if not trials:
            return None
        self._console.line("the test split, of which nothing was seen:")
        trials = [trial.judged_by("test") for trial in trials]
        config = self._config.model_copy(update={"early_stop": "none"})
        _, ran = self._round(base_run(trials[0].run, "test"), renumbered(trials), config)
        finished = [one for one in ran if one.outcome.summary is not None]
        if not finished:
            return None
        tested = judge(finished, self._config.tolerance)
        for index, reasons in enumerate(tested.choice.reasons):
            said = f"breaks: {'; '.join(reasons)}" if reasons else "keeps every limit"
            self._console.line(f"by the test split {tested.name(index)} {said}")
        return tested

    def _publish(
        self, phase: Phase, ran: Sequence[Ran], judged: Judged, tested: Judged | None, pilot: dict[str, Any] | None
    ) -> None:
        from pipeline.sweep.publish import gathered, publish
        from pipeline.sweep.result import sweep_json

        facts = gathered(phase, judged, self._store, time.monotonic() - self._began)
        content = sweep_json(self._config, ran, judged, tested, facts, pilot)
        figures, report = publish(phase.folder, content)
        self._console.line(f"figures: {figures}")
        self._console.line(f"report:  {report}")
