"""Finished runs as their summary.json files say what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import EvaluationError
from pipeline.nested import flat
from pipeline.records import HeldOut

SEED = "train.seed"
_NO_MATTER = (
    *("cluster.", "checkpoint.", "wandb.", "gate.", "registry.", "report."),
    *("reference.root", "evaluation.cost_per_incident", "risk.reason"),
)
"""Options of a run that change none of its figures, by how their names begin."""


@dataclass(frozen=True)
class Figure:
    """A figure with the ends of its 95% interval; None where no interval is defined."""

    value: float
    low: float | None
    high: float | None


FIGURES = ("mean", "mean_gain", "tail", "tail_gain", "incidents", "incidents_gain", "drift", "reward_accuracy")
"""Average score, that of the worst outputs and the share of incidents, each of the policy and above the reference's;
sequential KL on held-out chosen responses in nats; share of held-out pairs that the policy prefers as people do."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: Path
    """Its summary.json."""
    options: Mapping[str, Any]
    """By dotted name, without those that change no figure."""
    figures: Mapping[str, Figure]
    decayed: bool
    split: HeldOut
    """That it was judged by."""
    judged_by: Mapping[str, Any]
    """What must be the same for two runs to be compared: options of the evaluation, the prompts, and the key of the
    reference's samples (which hangs on model, data and sampling)."""

    @property
    def recipe(self) -> Path:
        """The whole run as a recipe, beside the summary."""
        return self.path.with_name("run.yaml")

    @property
    def storage(self) -> Path | None:
        """Where it was run, as far as its place tells."""
        reports = self.path.absolute().parent.parent
        return reports.parent if reports.name == "reports" else None


def read_run(path: Path) -> Run:
    """A run from its summary.json.

    Raises:
        EvaluationError: for a file that cannot be read or is no summary of this version.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; give the summary.json of a run") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is no summary.json of a run: {error}") from error
    try:
        evaluation = summary["evaluation"]
        scores = evaluation["scorers"][evaluation["primary_scorer"]]
        policy, gain, pairs = scores["policy"], scores["difference"], evaluation["pairs"]
        found = {
            "mean": policy["mean"],
            "mean_gain": gain["mean"],
            "tail": policy["tail_mean"],
            "tail_gain": gain["tail_mean"],
            "incidents": policy["incident_share"],
            "incidents_gain": gain["incident_share"],
            "drift": pairs["chosen_risk"]["kl"],
            "reward_accuracy": pairs["reward_accuracy"],
        }
        options = {name: value for name, value in flat(summary["config"]).items() if not name.startswith(_NO_MATTER)}
        judged_by = {name: value for name, value in options.items() if name.startswith("evaluation.")}
        judged_by |= {"prompts": evaluation["prompt_set"], "reference": summary["artifacts"]["sample_reference"]}
        figures = {name: _figure(one) for name, one in found.items()}
        decayed, split = bool(evaluation["verdict"]["degenerate"]), evaluation["split"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(
            f"{path} is no summary.json of a run of this version ({type(error).__name__}: {error}): run it again"
        ) from error
    return Run(path, options, figures, decayed, split, judged_by)


def _figure(one: Mapping[str, Any]) -> Figure:
    ends = [None if one[end] is None else float(one[end]) for end in ("low", "high")]
    found = Figure(float(one["value"]), *ends)
    if not all(math.isfinite(number) for number in (found.value, *ends) if number is not None):
        raise ValueError("a figure is not finite")
    return found


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only."""

    runs: tuple[Run, ...]

    def figure(self, name: str) -> Figure:
        """One of `FIGURES`: the mean over the seeds, between the lowest and the highest end of their intervals."""
        found = [run.figures[name] for run in self.runs]
        lows, highs = [one.low for one in found], [one.high for one in found]
        return Figure(
            math.fsum(one.value for one in found) / len(found),
            None if None in lows else min(low for low in lows if low is not None),
            None if None in highs else max(high for high in highs if high is not None),
        )

    @property
    def decayed(self) -> bool:
        return any(run.decayed for run in self.runs)


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Runs grouped by everything but their seed, in the order of their first ones.

    Raises:
        EvaluationError: when one is there twice, or when two cannot be compared: judged by other prompts, otherwise,
            or against another reference.
    """
    groups: dict[str, dict[Any, Run]] = {}
    for run in runs:
        names = {**runs[0].judged_by, **run.judged_by}
        different = [name for name in names if run.judged_by.get(name) != runs[0].judged_by.get(name)]
        if different:
            raise EvaluationError(
                f"{run.path} differs from {runs[0].path} in {', '.join(different)}: only runs of the same data, "
                "reference and evaluation can be compared; leave one of the two out"
            )
        key = json.dumps({name: value for name, value in run.options.items() if name != SEED}, sort_keys=True)
        seeds = groups.setdefault(key, {})
        seed = run.options[SEED]
        if seed in seeds:
            raise EvaluationError(f"{run.path} and {seeds[seed].path} are the same run: give it once")
        seeds[seed] = run
    return [Setting(tuple(run for _, run in sorted(seeds.items()))) for seeds in groups.values()]


def differing(settings: Sequence[Setting]) -> list[str]:
    """Names of the options in which the settings differ, but for the seed."""
    options = [setting.runs[0].options for setting in settings]
    names = dict.fromkeys(name for one in options for name in one if name != SEED)
    return [name for name in names if any(one.get(name) != options[0].get(name) for one in options)]
