"""sweep.json: what was tried, what came of it, what was chosen and why. The report is made from it alone."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RISK_METHODS
from pipeline.evaluation.verdict import verdict_of
from pipeline.report.language import Translate, translator
from pipeline.selection.choose import broken, expected_cost, nearest, objective
from pipeline.selection.judged import FIGURES, Figure, Setting
from pipeline.selection.show import command
from pipeline.sweep.judged import TRIAL_STAGES, Judged, Ran
from pipeline.sweep_config import SweepConfig, Tolerance

_ROLES = ("chosen", "runner-up")


@dataclass(frozen=True)
class Facts:
    """What the trials themselves do not say."""

    recipe: str
    command: str
    trials_at_once: int
    seconds_total: float
    """Of this call of the command; what earlier ones did is not in it."""
    seconds_per_step: Mapping[str, float]
    """Of every alignment, by the path of its summary.json."""
    reference_bytes: Mapping[str, int]
    """What a reference cache of each tier takes, by the tier's name."""
    versions: Mapping[str, str]


def sweep_json(
    config: SweepConfig,
    ran: Sequence[Ran],
    judged: Judged,
    tested: Judged | None,
    facts: Facts,
    pilot: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the report shows. Verdicts and broken limits are sentences in the report's language.

    Args:
        ran: all trials of the round that was chosen from.
        tested: the chosen setting and the runner-up as the test split sees them.
        pilot: the round before it, in words of the report.
    """
    first = next((one.summary for one in ran if one.summary is not None), None)
    evaluation: Mapping[str, Any] = {} if first is None else first["evaluation"]
    asked, choice, language = ran[0].trial.run.evaluation, judged.choice, ran[0].trial.run.report.language
    tr = translator(language)
    return {
        "language": language,
        "recipe": facts.recipe,
        "command": facts.command,
        "search": config.search,
        "early_stop": config.early_stop,
        "seeds": list(config.seeds),
        "split": config.split,
        "num_prompts": evaluation.get("num_prompts", 0),
        "samples_per_prompt": len(evaluation.get("seeds", ())),
        "tail_fraction": asked.tail_fraction,
        "primary_scorer": asked.primary_scorer,
        "incident_below": asked.incident_below,
        "tolerance": config.tolerance.model_dump(),
        "dimensions": list(dict.fromkeys(name for one in ran for name in one.trial.options)),
        "settings": [_setting(judged, index, config.tolerance, facts, tr) for index in range(len(judged.settings))],
        "reference": _reference(evaluation),
        "chosen": choice.best,
        "runner_up": choice.runner_up,
        "nearest": list(nearest(judged.settings, choice, config.tolerance)),
        "chosen_command": None
        if choice.best is None
        else command(judged.settings[choice.best], len(judged.settings), config.tolerance),
        "test": [] if tested is None else _tests(judged, tested, config.tolerance, None if language == "en" else tr),
        "trials": [_trial(one) for one in ran],
        "risk_cost": _risk_cost(judged, config.tolerance, facts),
        "shared": _shared(ran, facts),
        "pilot": pilot,
        "versions": dict(facts.versions),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }


def _setting(judged: Judged, index: int, tolerance: Tolerance, facts: Facts, tr: Translate) -> dict[str, Any]:
    setting, trials = judged.settings[index], judged.trials[index]
    run, cost = trials[0].trial.run, tolerance.cost_per_incident
    risky = run.loss.method in RISK_METHODS
    return {
        "name": judged.name(index),
        "options": dict(trials[0].trial.options),
        "method": run.loss.method,
        "measure": run.risk.measure if risky else None,
        "level": run.risk.level if risky else None,
        "seeds": [one.trial.seed for one in trials],
        "decayed": setting.decayed,
        "limits_broken": broken(setting, tolerance, tr),
        "front": index in judged.choice.front,
        "expected_cost": None if cost is None else expected_cost(setting, cost),
        "figures": _figures(setting),
        "seconds": _mean([one.seconds for one in trials]),
        "seconds_per_step": _step_seconds(trials, facts),
    }


def _figures(setting: Setting) -> dict[str, Any]:
    return {name: asdict(setting.figure(name)) for name in FIGURES}


def _reference(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    if not evaluation:
        return None
    scores = evaluation["scorers"][evaluation["primary_scorer"]]["reference"]
    return {"mean": scores["mean"], "tail": scores["tail_mean"], "incidents": scores["incident_share"]}


def _tests(judged: Judged, tested: Judged, tolerance: Tolerance, tr: Translate | None) -> list[dict[str, Any]]:
    """Chosen and runner-up on the test split, found again by what they are, not by their order.

    Args:
        tr: into the report's language; None when that is the summaries' own.
    """
    found = []
    for role, index in zip(_ROLES, (judged.choice.best, judged.choice.runner_up), strict=True):
        if index is None:
            continue
        same = [k for k in range(len(tested.settings)) if tested.trials[k][0].trial.options == _options(judged, index)]
        for k in same:
            summaries = [one.summary for one in tested.trials[k]]
            paths = [Path(one.outcome.summary or "").with_name("report.html") for one in tested.trials[k]]
            found.append(
                {
                    "setting": index,
                    "role": role,
                    "figures": _figures(tested.settings[k]),
                    "limits_broken": broken(tested.settings[k], tolerance, tr or str),
                    "verdict": [_headline(summary, tr) for summary in summaries if summary is not None],
                    "reports": [str(path) for path in paths],
                }
            )
    return found


def _headline(summary: Mapping[str, Any], tr: Translate | None) -> str:
    verdict = summary["verdict"] if tr is None else verdict_of(summary["evaluation"], tr)
    return str(verdict["headline"])


def _options(judged: Judged, index: int) -> Mapping[str, Any]:
    return judged.trials[index][0].trial.options


def _trial(one: Ran) -> dict[str, Any]:
    summary = one.outcome.summary
    return {
        "number": one.trial.number,
        "options": dict(one.trial.options),
        "seed": one.trial.seed,
        "state": one.outcome.state,
        "reason": one.outcome.reason,
        "seconds": one.outcome.seconds,
        "stages": one.stages,
        "report": None if summary is None else str(Path(summary).with_name("report.html")),
    }


def _risk_cost(judged: Judged, tolerance: Tolerance, facts: Facts) -> list[dict[str, Any]]:
    """By method: what a step and its reference take, and what its best setting is expected to avoid."""
    methods = dict.fromkeys(trials[0].trial.run.loss.method for trials in judged.trials)
    rows: list[dict[str, Any]] = []
    for method in methods:
        of_it = [k for k, trials in enumerate(judged.trials) if trials[0].trial.run.loss.method == method]
        best = max((judged.settings[k] for k in of_it), key=lambda setting: objective(setting, tolerance))
        tier = "scalar" if method == "dpo" else judged.trials[of_it[0]][0].trial.run.reference.tier
        rows.append(
            {
                "method": method,
                "settings": len(of_it),
                "seconds_per_step": _mean([_step_seconds(judged.trials[k], facts) for k in of_it]),
                "reference_bytes": facts.reference_bytes[tier],
                "reference_tier": tier,
                "loss_avoided_per_1000": _avoided(best.figure("incidents_gain"), tolerance.cost_per_incident),
            }
        )
    dpo = next((row["seconds_per_step"] for row in rows if row["method"] == "dpo"), None)
    for row in rows:
        row["ratio_to_dpo"] = row["seconds_per_step"] / dpo if dpo and row["seconds_per_step"] else None
    return rows


def _avoided(incidents_gain: Figure, cost: float | None) -> dict[str, float | None] | None:
    """Of 1,000 outputs: the reference's incidents less the policy's, at their cost."""
    if cost is None:
        return None
    low, high = incidents_gain.low, incidents_gain.high
    ends = (None, None) if low is None or high is None else (-1000 * cost * high, -1000 * cost * low)
    return {"value": -1000 * cost * incidents_gain.value, "low": ends[0], "high": ends[1]}


def _shared(ran: Sequence[Ran], facts: Facts) -> dict[str, Any]:
    summaries = [one.summary for one in ran]
    there = [summary for summary in summaries if summary is not None]
    stages = there[0]["timing"]["stages"] if there else {}
    return {
        "stages": {name: seconds for name, seconds in stages.items() if name not in TRIAL_STAGES},
        "reference_passes": len({summary["artifacts"]["reference"] for summary in there}),
        "seconds_total": facts.seconds_total,
        "trials_at_once": facts.trials_at_once,
    }


def _step_seconds(trials: Sequence[Ran], facts: Facts) -> float | None:
    return _mean([facts.seconds_per_step.get(one.outcome.summary or "") for one in trials])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
