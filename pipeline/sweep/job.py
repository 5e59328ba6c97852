"""The sweep job: trials, a choice by the tolerance, the chosen ones on the test split, and the report."""

from __future__ import annotations

from pipeline.cli import JobRequest
from pipeline.config import RunConfig, SweepConfig
from pipeline.sweep.space import Trial, check_space, drawn, grid, made_trials


def sweep(request: JobRequest) -> int:
    """Run a sweep; returns the exit code."""
    config = request.run.sweep
    check_space(config)
    base = base_run(request.run)
    trials = planned_trials(base, config)

    from pipeline.job import opened, recipe_name, storage_of

    storage = storage_of(request)
    with opened(request, storage, "sweep", "sweep") as (store, console):
        from pipeline.sweep.phase import Phase

        ran = Phase(recipe_name(request), base, config, storage, trials).run(store, console)
        console.line(f"{len(ran)} ended")
    return 0


def base_run(run: RunConfig) -> RunConfig:
    """What all trials share, judged by the sweep's split."""
    evaluation = run.evaluation.model_copy(update={"split": run.sweep.split})
    return run.model_copy(update={"evaluation": evaluation, "sweep": SweepConfig()})


def planned_trials(base: RunConfig, config: SweepConfig) -> list[Trial] | None:
    """The trials that are known beforehand; None for a search that finds them as it goes.

    Raises:
        ConfigError: for a combination that makes no run.
    """
    if config.search == "optuna":
        return None
    settings = grid(config) if config.search == "grid" else drawn(config)
    return made_trials(base, settings, config.seeds)
