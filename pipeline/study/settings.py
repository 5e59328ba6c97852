"""Settings of a study: the runs that differ in their training seed only, and which runs cannot be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.catalogue import MEASURES
from pipeline.config import RISK_METHODS, Method
from pipeline.errors import EvaluationError
from pipeline.study.runs import SEED, StudyRun

BETA = 0.1
"""At which methods are compared with dpo at the same rate."""
BASELINE = "dpo"
METHODS: tuple[str, ...] = get_args(Method)
_VARIED = frozenset({"loss.method", "loss.beta", "risk.measure", "risk.level", "train.optim.lr", SEED})
_NO_MATTER = (
    "cluster.",
    "checkpoint.",
    "wandb.",
    "reference.root",
    "evaluation.cost_per_incident",
    "evaluation.bootstrap_resamples",
)
"""Options that change none of the figures, by how their names begin; the study makes its own intervals."""


@dataclass(frozen=True)
class Setting:
    """What the study varies; ``measure`` and ``level`` are None where the method has none."""

    method: str
    measure: str | None
    level: float | None
    beta: float
    lr: float

    @property
    def label(self) -> str:
        """For example "ra_dpo2, cvar 0.97"; beta is named where it is another than `BETA`. Without the rate."""
        level = "" if self.level is None else f" {self.level:g}"
        risk = "" if self.measure is None else f", {self.measure}{level}"
        return f"{self.method}{risk}" + ("" if self.beta == BETA else f", beta {self.beta:g}")

    @property
    def order(self) -> tuple[Any, ...]:
        """By rate, method, measure, level from nearly neutral, beta from near the reference."""
        level = self.level or 0.0
        averse = -level if self.measure != "erm" else level
        return self.lr, METHODS.index(self.method), self.measure or "", averse, -self.beta


def setting_of(options: Mapping[str, Any]) -> Setting:
    """What the options of a run say; those that its method does not use are left out."""
    method = str(options["loss.method"])
    measure = str(options["risk.measure"]) if method in RISK_METHODS else None
    has_level = measure is not None and not (measure in MEASURES and MEASURES[measure].level is None)
    level = float(options["risk.level"]) if has_level else None
    return Setting(method, measure, level, float(options["loss.beta"]), float(options["train.optim.lr"]))


def settings_of(runs: Sequence[StudyRun]) -> dict[Setting, tuple[StudyRun, ...]]:
    """The runs of every setting in the order of their seeds, and the settings in theirs.

    Raises:
        EvaluationError: when there are none; when two were judged by other prompts, pairs or against another reference,
            or differ in an option that the study does not vary; when one is there twice; when a setting lacks a seed
            that another has; when dpo at `BETA` is missing at a rate.
    """
    if not runs:
        raise EvaluationError("there are no runs to study: give their summary.json files")
    _check_alike(runs)
    found: dict[Setting, dict[int, StudyRun]] = {}
    for run in runs:
        seeds = found.setdefault(setting_of(run.options), {})
        if run.seed in seeds:
            raise EvaluationError(f"{run.path} and {seeds[run.seed].path} are the same run: give it once")
        seeds[run.seed] = run
    every_seed = set().union(*found.values())
    for setting, seeds in found.items():
        if missing := sorted(every_seed - set(seeds)):
            raise EvaluationError(
                f"{setting.label} at rate {setting.lr:g} lacks the seed {', '.join(map(str, missing))} that others "
                "have, so it cannot be compared seed by seed: finish its runs or leave the setting out"
            )
    for lr in sorted({setting.lr for setting in found}):
        if baseline(lr) not in found:
            raise EvaluationError(
                f"there is no {BASELINE} at beta {BETA:g} and rate {lr:g} to compare with: run it or leave out the rate"
            )
    return {
        setting: tuple(run for _, run in sorted(found[setting].items()))
        for setting in sorted(found, key=lambda one: one.order)
    }


def baseline(lr: float) -> Setting:
    """What every setting of a rate is compared with."""
    return Setting(BASELINE, None, None, BETA, lr)


def _check_alike(runs: Sequence[StudyRun]) -> None:
    first = runs[0]
    seen: dict[str, tuple[Any, StudyRun]] = {}
    for run in runs:
        different = [
            text
            for text, ours, theirs in (
                ("the reference", run.reference, first.reference),
                ("the prompts", (run.prompt_set, run.prompts), (first.prompt_set, first.prompts)),
                ("the samples of a prompt", run.scores.shape, first.scores.shape),
                ("the held-out pairs", run.pairs.row_ids, first.pairs.row_ids),
            )
            if ours != theirs
        ]
        if different:
            raise EvaluationError(
                f"{run.path} differs from {first.path} in {', '.join(different)}: a study is about one reference, one "
                "split and one set of prompts; leave one of the two out"
            )
        for name, value in _fixed(run.options).items():
            known, where = seen.setdefault(name, (value, run))
            if known != value:
                raise EvaluationError(
                    f"{run.path} has {name} {value}, {where.path} has {known}: the study does not vary this option, so "
                    "leave one of the two out"
                )


def _fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that must be the same: all but those varied, those that change no figure and those unused."""
    method = options["loss.method"]
    unused: tuple[str, ...] = _NO_MATTER
    unused += () if method in RISK_METHODS else ("risk.",)
    unused += () if method in ("tdpo2", "ra_dpo2") else ("loss.alpha",)
    unused += ("reference.",) if method == BASELINE else ()
    return {name: value for name, value in options.items() if name not in _VARIED and not name.startswith(unused)}
