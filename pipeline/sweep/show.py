"""A sweep on the console: what would run, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.selection.choose import expected_cost
from pipeline.selection.judged import Figure
from pipeline.storage import Storage
from pipeline.sweep.judged import Judged
from pipeline.sweep.space import Trial
from pipeline.sweep_config import SweepConfig

_RANGE = 25
"""Columns of a gain with its interval."""


def show_plan(request: JobRequest, base: RunConfig, trials: Sequence[Trial] | None, storage: Storage) -> None:
    """Print what all trials share and what it costs, and every trial."""
    from pipeline.job import describe_run
    from pipeline.sweep.phase import SHARED

    describe_run(request, base, storage, SHARED)
    config = request.run.sweep
    if trials is None:
        print(f"\n{config.settings} settings, found by optuna as it goes, with the seeds {_listed(config.seeds)}")
    else:
        print(f"\n{len(trials)} trials:")
        for trial in trials:
            print(f"  {trial.number:4d}  {trial.name}")
    if request.pilot is not None:
        print(f"first on {request.pilot:.0%} of the training groups; {config.pilot_keep:.0%} of the settings go on")


def choice_lines(judged: Judged, config: SweepConfig) -> Iterator[str]:
    """All settings, best average first, and the choice."""
    choice, cost = judged.choice, config.tolerance.cost_per_incident
    names = [judged.name(index) for index in range(len(judged.settings))]
    width = max(map(len, names))
    yield f"{'':{width}}    {'average, gain':{_RANGE}}  {'worst, gain':{_RANGE}}  incidents  drift, nats"
    for index in sorted(range(len(names)), key=lambda index: -judged.settings[index].figure("mean").value):
        figure = judged.settings[index].figure
        yield (
            f"{names[index]:{width}} {'*' if index in choice.front else ' '}  {_range(figure('mean_gain'))}  "
            f"{_range(figure('tail_gain'))}  {figure('incidents').value:9.1%}  {figure('drift').value:11.2f}"
            + ("" if cost is None else f"  cost of 1,000: {expected_cost(judged.settings[index], cost):,.0f}")
        )
    yield "gains over the reference with 95% intervals; * on the front of average, worst and drift"
    if config.split == "test":
        return
    for index, reasons in enumerate(choice.reasons):
        if reasons:
            yield f"not {names[index]}: {'; '.join(reasons)}"
    if choice.best is None:
        yield "no setting keeps every limit: nothing is chosen"
        return
    yield f"chosen:    {names[choice.best]}"
    if choice.runner_up is not None:
        yield f"runner-up: {names[choice.runner_up]}"


def _range(figure: Figure) -> str:
    low, high = figure.low, figure.high
    interval = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{f'{figure.value:+.3f}{interval}':{_RANGE}}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
