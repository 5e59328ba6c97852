"""The setting chosen anew before a re-alignment: the sweep with its pilot, judged by the tolerance."""

from __future__ import annotations

from dataclasses import replace

from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.sweep.job import run_sweep
from pipeline.sweep.space import checked_run


def chosen_anew(request: JobRequest, run: RunConfig) -> tuple[RunConfig, str]:
    """The run with the setting that the sweep chooses on the present data, and a sentence about it; the run as it is
    when none keeps every limit.

    Args:
        run: on its line, without the pairs that are held.

    Raises:
        ConfigError: for a space that cannot be searched.
    """
    swept = run_sweep(replace(request, run=run, pilot=run.realign.pilot))
    if swept.best is None:
        return run, f"no setting of sweep.space keeps the limits ({swept.folder.where}): the run's own stays"
    chosen = checked_run(run, swept.best, run.train.seed)
    shown = ", ".join(f"{name} {value}" for name, value in swept.best.items())
    said = f"chosen anew under sweep.tolerance: {shown} ({swept.folder.where})"
    risk = chosen.risk.model_copy(update={"reason": said})
    return run.model_copy(update={"loss": chosen.loss, "train": chosen.train, "risk": risk}), said
