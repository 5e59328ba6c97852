"""Trials under Ray Tune: so many side by side, ended early when a scheduler says so, none a danger to another."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.sweep.search import Search
from pipeline.sweep.space import Trial
from pipeline.sweep.trial import DONE_PERCENT, NEEDS, TrialProcess
from pipeline.sweep_config import SweepConfig

_ACTOR_DEATHS = 2
"""Times that a trial is begun again when its actor, not its job, is lost (with its node, for instance)."""
_MODES = {"worst_reward_margin": "max", "worst_chosen_kl": "min", "reward_accuracy": "max"}

Ended = Callable[[Trial, Mapping[str, Any] | None], float | None]
"""Told how a trial ended: its last report, None when its actor was lost for good. Returns what it was worth."""


def tune_trials(
    search: Search,
    sweep: SweepConfig,
    at_once: int,
    scratch: Path,
    config_of: Callable[[Trial], dict[str, Any]],
    ended: Ended,
) -> None:
    """Run all trials of a search in the connected cluster.

    Args:
        at_once: trials side by side, for all of which there is room.
        scratch: a directory for what Tune writes; nothing reads it.
        config_of: what `TrialProcess` takes.
    """
    # Tune's own files and signals are for experiments that it restores; here the artefacts are what a sweep resumes by.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # The last report of a trial is of its job, not of its training.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # A name of its own: a second experiment of the same name would overwrite the first one's state.
    name = uuid.uuid4().hex[:8]
    try:
        tune.Tuner(
            tune.with_resources(TrialProcess, NEEDS),
            tune_config=tune.TuneConfig(
                search_alg=_Asking(search, config_of, ended),
                scheduler=_scheduler(sweep),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(scratch),
                verbose=0,
                # A trial keeps its own checkpoints; Tune would ask for one at the end.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_ACTOR_DEATHS),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _scheduler(sweep: SweepConfig) -> TrialScheduler:
    if sweep.early_stop == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=DONE_PERCENT,
        metric=sweep.early_stop_metric,
        mode=_MODES[sweep.early_stop_metric],
        max_t=100,
        grace_period=100 // sweep.early_stop_factor**2,
        reduction_factor=sweep.early_stop_factor,
        stop_last_trials=False,  # a training at its end has its evaluation before it
    )


class _Asking(Searcher):
    """Tune's view of a `Search`."""

    def __init__(self, search: Search, config_of: Callable[[Trial], dict[str, Any]], ended: Ended) -> None:
        super().__init__()
        self._search, self._config_of, self._ended = search, config_of, ended
        self._trials: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self._search.next()
        if trial is None:
            return self.FINISHED if self._search.exhausted() else None
        self._trials[trial_id] = trial
        return self._config_of(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._trials.pop(trial_id)
        self._search.tell(trial, self._ended(trial, None if error else result))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep resumes by the outcomes of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its configuration, which nothing of this sweep is read back from."""
        return (Searcher, ())
