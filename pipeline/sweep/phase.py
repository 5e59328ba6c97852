"""One round of trials: what they share is computed once, then they run side by side and leave their outcomes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.align import AlignmentRun
from pipeline.checkpoints.layout import METRICS
from pipeline.checkpoints.remote import open_run
from pipeline.config import OF_NO_STAGE, RunConfig
from pipeline.console import duration
from pipeline.digests import digest_json
from pipeline.errors import ClusterError
from pipeline.job import begin_run, joined
from pipeline.selection.choose import objective
from pipeline.selection.judged import Setting, read_run
from pipeline.storage import Storage, fetched, local_copy
from pipeline.survey import model_directory
from pipeline.sweep.judged import Ran
from pipeline.sweep.outcomes import Outcome, TrialFiles, is_there, read_json, settled, write_whole
from pipeline.sweep.search import ListSearch, OptunaSearch, Search
from pipeline.sweep.space import Trial
from pipeline.sweep_config import SweepConfig

if TYPE_CHECKING:
    from pipeline.artifacts import Store
    from pipeline.console import Console

SHARED = ("reference", "sample_reference")
"""The last stages that all trials share."""
SUMMARY = "summary.json"
ASKED = "asked.json"


class Phase:
    """Trials of one base run.

    Args:
        recipe: its name.
        base: what the trials share; its ``evaluation.split`` is what they are judged by.
        trials: those to run, in this order; None lets Optuna find them as it goes.
    """

    def __init__(
        self, recipe: str, base: RunConfig, sweep: SweepConfig, storage: Storage, trials: Sequence[Trial] | None
    ) -> None:
        self.recipe, self.base = recipe, base
        self._sweep, self._storage, self._trials = sweep, storage, trials
        self.folder = storage.folder("sweeps", f"{recipe}-{self._key()[:8]}")
        self.directory = self.folder.path
        """Where the sweep's files are written."""
        self._asked = self.directory / ASKED
        self.at_once = 0
        """Trials side by side; 0 when there was none to run."""
        self._shared = AlignmentRun(recipe, base, storage, SHARED)

    def _key(self) -> str:
        """What the numbers of the trials mean: the same trials again find their outcomes."""
        stop = self._sweep.model_dump(mode="json", include={"early_stop", "early_stop_metric", "early_stop_factor"})
        base = self.base.model_dump(mode="json", exclude={"cluster", "checkpoint", "wandb", *OF_NO_STAGE})
        if self._trials is not None:
            trials = [[dict(trial.options), trial.seed] for trial in self._trials]
            return digest_json({"base": base, "stop": stop, "trials": trials})
        # Optuna goes by the tolerance, and where it stops changes nothing of what came before.
        searched = self._sweep.model_dump(mode="json", exclude={"trials_at_once", "settings", "pilot_keep"})
        return digest_json({"base": base, "search": searched})

    def run(self, store: Store, console: Console) -> list[Ran]:
        """Run what has no outcome yet; returns all trials in their order.

        Raises:
            ClusterError: when more trials are wanted side by side than there is room for.
            PipelineError: of the stages that the trials share.
        """
        if self._trials is not None:
            self._find(self._trials, store)
        search, total, known = self._search()
        if known:
            console.line(f"= {known} of {total} trials reused")
        if not search.exhausted():
            # Of a Ray started here: a trial is half a dozen processes, of which Ray warns on a machine of two CPUs.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
            have = begin_run(self._shared, store, console)
            with joined(self._shared, console):
                self._run_trials(search, total, known, store, console, have)
        trials = search.trials if isinstance(search, OptunaSearch) else self._trials or []
        ended = [(trial, self._files(trial).outcome()) for trial in trials]
        ran = [Ran(trial, outcome) for trial, outcome in ended if outcome is not None]
        for one in ran:
            if one.outcome.state == "stopped early":  # its training will not go on
                open_run(self._alignment(one.trial).run_directory("align"), {}).remove()
        return ran

    def shared_key(self, stage: str) -> str:
        """Key of a stage that all trials share."""
        return self._shared.planned[stage].key

    def reference_model(self, store: Store) -> Path | None:
        """The model directory, as far as a stage has made it or it lies outside."""
        return model_directory(self.base.model, self._shared.planned, store)

    def train_pairs(self, store: Store, share: float) -> int:
        """Training pairs in a share of their groups."""
        from pipeline.data.order import share_of_groups
        from pipeline.data.tables import read_table
        from pipeline.records import PairTokens

        tokens = local_copy(store.location("tokens", self.shared_key("tokens")))
        return len(share_of_groups(read_table(tokens / "train.parquet", PairTokens), share))

    def _search(self) -> tuple[Search, int, int]:
        """The search, how many trials there are in all, and how many of them have ended for good."""
        if self._trials is None:
            assert self._sweep.settings is not None
            total = self._sweep.settings * len(self._sweep.seeds)
            remembered = self._remembered(total)
            asked = read_json(self._asked) if self.folder.fetch(ASKED).is_file() else []
            return OptunaSearch(self.base, self._sweep, remembered, asked), total, len(remembered)
        outcomes = settled(self._files(trial) for trial in self._trials)
        left = [trial for trial, outcome in zip(self._trials, outcomes, strict=True) if outcome is None]
        return ListSearch(left), len(self._trials), len(self._trials) - len(left)

    def _find(self, trials: Sequence[Trial], store: Store) -> None:
        """Take what other sweeps, or the alignment job, have finished of these trials."""
        for trial in trials:
            files = self._files(trial)
            if files.outcome() is not None:
                continue
            run = self._alignment(trial)
            summary = f"{run.published.where}/{SUMMARY}"
            if store.exists("report", run.planned["report"].key) and is_there(summary):
                files.prepare(trial.run)
                found = Outcome("finished", None, 0.0, summary)
                files.put(dataclasses.replace(found, seconds=Ran(trial, found).seconds))

    def _remembered(self, total: int) -> dict[int, float | None]:
        """What a search by Optuna knew: the worth of its trials by number."""
        found: dict[int, float | None] = {}
        for number in range(total):
            outcome = settled([TrialFiles(self.folder, self.recipe, number)])[0]
            if outcome is not None:
                found[number] = self._worth(outcome)
        return found

    def _run_trials(
        self, search: Search, total: int, done: int, store: Store, console: Console, have: Mapping[str, Any]
    ) -> None:
        from pipeline.graph import execute
        from pipeline.plan import align_steps
        from pipeline.survey import counts_of
        from pipeline.sweep.tuning import tune_trials

        self.at_once = at_once = self._at_once()
        artifacts = execute(self._shared.planned, store, console, have)
        self._shared.remove_checkpoints()
        counts = counts_of(artifacts["tokens"].path)
        console.line(f"{total - done} trials, {at_once} at once; what they say: {self.folder.where}/trials")
        ended = done

        def config_of(trial: Trial) -> dict[str, Any]:
            if isinstance(search, OptunaSearch):  # before anything is known of it
                write_whole(self._asked, search.params)
                self.folder.send(ASKED)
            files = self._files(trial)
            # It joins the cluster that this job is in, wherever its process is.
            here = trial.run.cluster.model_copy(update={"address": None, "dashboard_port": None})
            files.prepare(trial.run.model_copy(update={"cluster": here}))
            watched = self._sweep.early_stop != "none"
            return {
                "folder": files.where,
                "recipe": files.recipe.name,
                "storage": self._storage.root,
                "metrics": f"{self._alignment(trial).run_directory('align')}/{METRICS}" if watched else None,
                "steps": align_steps(trial.run, counts),
                "cwd": os.getcwd(),
            }

        def on_end(trial: Trial, result: Mapping[str, Any] | None) -> float | None:
            nonlocal ended
            ended += 1
            outcome = self._outcome(trial, result)
            self._files(trial).put(outcome)
            console.line(_line(trial, outcome, f"{ended} of {total}"))
            return self._worth(outcome)

        tune_trials(search, self._sweep, at_once, self._storage.for_ray("ray_tune"), config_of, on_end)

    def _at_once(self) -> int:
        from pipeline.cluster import alive_nodes, node_resources, runs_that_fit

        cluster, wanted = self.base.cluster, self._sweep.trials_at_once
        fit = runs_that_fit(node_resources(), cluster)
        if wanted is not None and wanted > fit and not cluster.autoscaling:
            raise ClusterError(
                f"sweep.trials_at_once is {wanted}, but the cluster of {len(alive_nodes())} node(s) has room for {fit} "
                f"run(s) side by side, each with {cluster.num_workers} worker(s) of {cluster.cpus_per_worker:g} CPU(s) "
                f"and {cluster.gpus_per_worker:g} GPU(s): lower it, or cluster.num_workers, or add nodes"
            )
        return wanted or max(1, fit)

    def _outcome(self, trial: Trial, result: Mapping[str, Any] | None) -> Outcome:
        files = self._files(trial)
        if result is None:
            return Outcome(
                "failed", f"the actor of the trial was lost again and again; its output is {files.log}", 0.0, None
            )
        code = result.get("exit_code")
        if code is None:
            metric = self._sweep.early_stop_metric
            reason = f"{metric} {result[metric]:.4g} at step {result['step']}"
            return Outcome("stopped early", reason, result["time_total_s"], None)
        if code != 0:
            return Outcome("failed", files.last_error(), result["seconds"], None)
        return Outcome("finished", None, result["seconds"], f"{self._alignment(trial).published.where}/{SUMMARY}")

    def _worth(self, outcome: Outcome) -> float | None:
        if outcome.summary is None:
            return None
        return objective(Setting((read_run(fetched(outcome.summary)),)), self._sweep.tolerance)

    def _alignment(self, trial: Trial) -> AlignmentRun:
        return _alignment(self.recipe, self._storage, trial.run.model_dump_json())

    def _files(self, trial: Trial) -> TrialFiles:
        return TrialFiles(self.folder, self.recipe, trial.number)


@functools.lru_cache(maxsize=1)
def _alignment(recipe: str, storage: Storage, run: str) -> AlignmentRun:
    return AlignmentRun(recipe, RunConfig.model_validate_json(run), storage)


def _line(trial: Trial, outcome: Outcome, which: str) -> str:
    took = duration(outcome.seconds)
    if outcome.summary is None:
        mark = "✗" if outcome.state == "failed" else "-"
        reason = next(iter((outcome.reason or "").splitlines()), "")
        return f"{mark} {which}  {trial.name}: {outcome.state}: {reason}  {took}"
    scores = json.loads(fetched(outcome.summary).read_text(encoding="utf-8"))["evaluation"]
    gain, pairs = scores["scorers"][scores["primary_scorer"]]["difference"], scores["pairs"]
    return (
        f"✓ {which}  {trial.name}: average {gain['mean']['value']:+.3f}, worst {gain['tail_mean']['value']:+.3f}, "
        f"drift {pairs['chosen_risk']['kl']['value']:.2f} nats  {took}"
    )
