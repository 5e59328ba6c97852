"""Sweeps whose trials' summaries are made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.selection.judged import FIGURES, Figure, Run, Setting
from pipeline.sweep.judged import Ran
from pipeline.sweep.outcomes import Outcome, State
from pipeline.sweep.space import Trial, made_trials
from pipeline.sweep_config import SweepConfig

REFERENCE = {"mean": 0.1, "tail": -0.5, "incidents": 0.06}
STAGES = {"data": 2.0, "reference": 10.0, "sample_reference": 5.0, "align": 30.0, "sample_policy": 6.0, "evaluate": 8.0}


def base_run(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "some/model"}} | sections)


def sweep_of(*parts: Mapping[str, Any], **options: Any) -> SweepConfig:
    """A sweep over the union of parts; search by anything but a grid gets its number of settings."""
    return SweepConfig.model_validate({"space": list(parts)} | options)


def trials_of(settings: Sequence[Mapping[str, Any]], seeds: Sequence[int] = (0,), **sections: Any) -> list[Trial]:
    return made_trials(base_run(**sections), settings, seeds)


def estimate(value: float, half: float | None = 0.05) -> dict[str, float | None]:
    ends = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1]}


def summary_of(trial: Trial, **changed: Any) -> dict[str, Any]:
    """What a trial's summary.json says, as far as it is read; policy's figures and stages' seconds by name."""
    half = changed.pop("half", 0.05)
    stages = STAGES | changed.pop("stages", {})
    keys = {"reference": "r" * 32, "sample_reference": "s" * 32, "align": f"align{trial.number}"}
    keys |= changed.pop("artifacts", {})
    drift, decayed = changed.pop("drift", 2.0), changed.pop("decayed", False)
    policy = {"mean": 0.2, "tail": -0.4, "incidents": 0.05} | changed
    assert set(policy) == set(REFERENCE)

    def side(figures: Mapping[str, float]) -> dict[str, Any]:
        names = {"mean": "mean", "tail_mean": "tail", "incident_share": "incidents"}
        return {name: estimate(figures[ours], half) for name, ours in names.items()}

    gains = {name: policy[name] - REFERENCE[name] for name in policy}
    return {
        "recipe": "made",
        "verdict": {"headline": f"Verdict of trial {trial.number}.", "degenerate": decayed},
        "evaluation": {
            "primary_scorer": "vader",
            "tail_fraction": trial.run.evaluation.tail_fraction,
            "incident_below": trial.run.evaluation.incident_below,
            "scorers": {"vader": {"reference": side(REFERENCE), "policy": side(policy), "difference": side(gains)}},
            "pairs": {
                "chosen_risk": {"kl": estimate(drift, half)},
                "reward_accuracy": estimate(0.7, half),
                "bits_per_byte_relative_change": None,
            },
            "text": {
                "repetition": {"difference": estimate(0.0, half)},
                "characters": {side: estimate(120.0, half) for side in ("reference", "policy", "difference")},
            },
            "split": trial.run.evaluation.split,
            "num_prompts": 40,
            "seeds": [0, 1, 2, 3],
            "prompt_set": f"prompts of {trial.run.evaluation.split}",
            "verdict": {"degenerate": decayed},
        },
        "artifacts": keys,
        "config": trial.run.model_dump(mode="json"),
        "timing": {"stages": stages},
    }


def finished(storage: Path, trial: Trial, **changed: Any) -> Ran:
    """A trial with its summary.json below a storage, as `summary_of` makes it."""
    path = storage / "reports" / f"{trial.run.evaluation.split}-{trial.number:04d}" / "summary.json"
    path.parent.mkdir(parents=True)
    seconds = changed.pop("seconds", 60.0)
    path.write_text(json.dumps(summary_of(trial, **changed)), encoding="utf-8")
    return Ran(trial, Outcome("finished", None, seconds, str(path)))


def ended(trial: Trial, state: State, reason: str) -> Ran:
    return Ran(trial, Outcome(state, reason, 12.0, None))


def setting(name: str = "one", decayed: bool = False, **figures: float) -> Setting:
    """A setting of one run; what is not given is 0."""
    known = dict.fromkeys(FIGURES, 0.0) | figures
    made = {key: Figure(value, value, value) for key, value in known.items()}
    return Setting((Run(Path(f"{name}/summary.json"), {"name": name}, made, decayed, "validation", {}),))
