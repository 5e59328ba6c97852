"""What sweeps say, as sweep.json holds it: a usual one, and every edge that a page has to bear."""

from __future__ import annotations

import copy
from typing import Any

Sweep = dict[str, Any]


def figure(value: float, half: float | None = None) -> dict[str, float | None]:
    return {
        "value": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
    }


def figures(gain: float, tail: float, incidents: float, drift: float, half: float | None = 1.0) -> dict[str, Any]:
    """Figures of a policy beside a reference with average 0.186, worst outputs -0.52, and 6% incidents."""

    def made(value: float, width: float) -> dict[str, float | None]:
        return figure(value, None if half is None else half * width)

    return {
        "mean": made(0.186 + gain, 0.05),
        "mean_gain": made(gain, 0.06),
        "tail": made(-0.52 + tail, 0.12),
        "tail_gain": made(tail, 0.15),
        "incidents": made(incidents, incidents * 0.6),
        "incidents_gain": made(incidents - 0.06, 0.02),
        "drift": made(drift, 0.06 * drift),
        "reward_accuracy": made(0.66 + 0.05 * gain, 0.03),
    }


def setting(method: str, measure: str | None, level: float | None, beta: float, *numbers: float) -> dict[str, Any]:
    drift = numbers[-1]
    broken = [f"drift {drift:.4g} nats (max_drift), at most 5"] if drift > 5 else []
    if drift > 20:
        broken.append("its text shows signs of decay (allow_decayed)")
    options: dict[str, Any] = {"loss.method": method, "loss.beta": beta}
    options |= {"risk.measure": measure, "risk.level": level} if measure else {}
    name = method if measure is None else f"{method}/{measure} {level:g}"
    return {
        "name": f"{name}, beta {beta:g}",
        "options": options,
        "method": method,
        "measure": measure,
        "level": level,
        "seeds": [0, 1],
        "decayed": drift > 20,
        "limits_broken": broken,
        "front": False,
        "expected_cost": None,
        "figures": figures(*numbers),
        "seconds": 55.0 + drift,
        "seconds_per_step": 0.38 if measure is None else 0.41,
    }


SETTINGS = [
    ("dpo", None, None, 0.1, 0.414, 0.328, 0.005, 23.66),
    ("tdpo2", None, None, 0.1, 0.121, 0.060, 0.031, 4.40),
    ("ra_dpo2", "cvar", 0.97, 0.1, 0.160, 0.125, 0.037, 5.99),
    ("ra_dpo2", "cvar", 0.9, 0.1, 0.133, 0.121, 0.030, 4.52),
    ("ra_dpo2", "cvar", 0.7, 0.1, 0.101, 0.119, 0.028, 3.30),
    ("ra_dpo2", "cvar", 0.5, 0.1, 0.076, 0.117, 0.027, 2.35),
    ("ra_dpo2", "cvar", 0.97, 0.2, 0.118, 0.090, 0.036, 4.10),
    ("ra_dpo2", "cvar", 0.7, 0.2, 0.070, 0.088, 0.033, 2.20),
    ("ra_dpo2", "cvar", 0.5, 0.2, 0.041, 0.052, 0.039, 1.45),
    ("ra_dpo1", "cvar", 0.9, 0.1, 0.150, -0.045, 0.050, 7.80),
    ("ra_dpo1", "cvar", 0.5, 0.1, 0.090, -0.060, 0.055, 6.10),
    ("ra_dpo2", "erm", 0.5, 0.1, 0.110, 0.101, 0.033, 3.90),
    ("ra_dpo2", "erm", 2.0, 0.1, 0.082, 0.098, 0.031, 2.70),
]


def trial(number: int, one: dict[str, Any], seed: int) -> dict[str, Any]:
    stages = {"align": 38.0 + one["figures"]["drift"]["value"] + seed, "sample_policy": 6.1, "evaluate": 8.2}
    stages["report"] = 0.6
    return {
        "number": number,
        "options": one["options"],
        "seed": seed,
        "state": "finished",
        "reason": None,
        "seconds": sum(stages.values()) + 1.4,
        "stages": stages,
        "report": f"runs/reports/reviews-{number:08x}/report.html",
    }


def lost(number: int, state: str, reason: str) -> dict[str, Any]:
    return {
        "number": number,
        "options": {"loss.method": "ra_dpo2", "loss.beta": 0.01, "risk.measure": "evar", "risk.level": 0.05},
        "seed": 0,
        "state": state,
        "reason": reason,
        "seconds": 12.0,
        "stages": {},
        "report": None,
    }


def make_sweep(**changes: Any) -> Sweep:
    """What a sweep of a small grid says, with any field replaced."""
    settings = [setting(*one) for one in SETTINGS]
    for index in (0, 2, 3, 4, 5, 7, 8):
        settings[index]["front"] = True
    trials = [trial(2 * index + seed, one, seed) for index, one in enumerate(settings) for seed in (0, 1)]
    trials.append(lost(26, "failed", "TrainingError: more than 20 steps had a loss that is not finite"))
    trials.append(lost(27, "stopped early", "validation reward accuracy 0.51 after 94 steps"))
    sweep: Sweep = {
        "recipe": "reviews",
        "command": "python jobs/sweep.py --recipe reviews --risk.level 0.97 0.9 0.7 0.5 --loss.beta 0.1 0.2 "
        "--train.seed 0 1 --tail_drop 0.02 --max_drift 5 --evaluation.split validation",
        "search": "grid",
        "early_stop": "asha",
        "seeds": [0, 1],
        "split": "validation",
        "num_prompts": 47,
        "samples_per_prompt": 4,
        "tail_fraction": 0.1,
        "primary_scorer": "vader",
        "incident_below": -0.5,
        "tolerance": {
            "tail_drop": 0.02,
            "max_drift": 5.0,
            "max_incidents": None,
            "cost_per_incident": None,
            "whole_interval": False,
            "allow_decayed": False,
        },
        "dimensions": ["loss.method", "loss.beta", "risk.measure", "risk.level"],
        "settings": settings,
        "reference": {"mean": figure(0.186, 0.05), "tail": figure(-0.52, 0.12), "incidents": figure(0.06, 0.03)},
        "chosen": 3,
        "runner_up": 1,
        "nearest": [index for index, one in enumerate(settings) if one["limits_broken"]],
        "chosen_command": "python jobs/align.py --recipe runs/reports/reviews-00000006/run.yaml "
        "--evaluation.split test",
        "test": [
            {
                "setting": 3,
                "role": "chosen",
                "figures": figures(0.101, 0.090, 0.034, 4.61),
                "limits_broken": [],
                "verdict": ["The policy is better than the reference: it has a higher average score."] * 2,
                "reports": ["runs/reports/reviews-a/report.html", "runs/reports/reviews-b/report.html"],
            },
            {
                "setting": 1,
                "role": "runner-up",
                "figures": figures(0.088, 0.031, 0.041, 4.48),
                "limits_broken": [],
                "verdict": ["The policy is better than the reference: it has a higher average score."] * 2,
                "reports": ["runs/reports/reviews-c/report.html"],
            },
        ],
        "trials": trials,
        "risk_cost": [
            cost("dpo", 1, 0.38, 1.0, 13600, "scalar"),
            cost("tdpo2", 1, 0.41, 1.08, 63_800_000, "hidden"),
            cost("ra_dpo1", 2, 0.42, 1.11, 63_800_000, "hidden"),
            cost("ra_dpo2", 9, 0.42, 1.11, 63_800_000, "hidden"),
        ],
        "shared": {
            "stages": {
                "data": 2.0,
                "base": 1.1,
                "tokens": 2.2,
                "sft": 88.2,
                "sample_reference": 6.7,
                "reference": 14.1,
            },
            "reference_passes": 1,
            "seconds_total": 1004.0,
            "trials_at_once": 2,
        },
        "pilot": {
            "fraction": 0.1,
            "pairs": 170,
            "settings": 20,
            "kept": [one["name"] for one in settings],
            "dropped": [f"ra_dpo1/evar {level}" for level in (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)],
            "chosen": "ra_dpo2/cvar 0.97, beta 0.1",
            "chosen_on_everything": "ra_dpo2/cvar 0.9, beta 0.1",
            "same_choice": False,
            "rank_agreement": {"mean": 0.79, "tail": 0.41, "drift": None},
            "seconds_pilot": 131.0,
            "seconds_saved": 690.0,
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"},
        "machine": "x86_64, 2 CPUs",
    }
    return copy.deepcopy(sweep | changes)


def cost(
    method: str, count: int, step: float, ratio: float, size: int, tier: str, avoided: float | None = None
) -> Sweep:
    return {
        "method": method,
        "settings": count,
        "seconds_per_step": step,
        "ratio_to_dpo": ratio,
        "reference_bytes": size,
        "reference_tier": tier,
        "loss_avoided_per_1000": None if avoided is None else figure(avoided, 1800.0),
    }


def tolerance(**changes: Any) -> Sweep:
    return make_sweep()["tolerance"] | changes


def unchosen(**changes: Any) -> Sweep:
    """A drift of 1 nat is too much for every setting."""
    nothing: Sweep = {"chosen": None, "runner_up": None, "chosen_command": None, "test": []}
    sweep = make_sweep(**(nothing | {"tolerance": tolerance(max_drift=1.0)} | changes))
    for one in sweep["settings"]:
        drift = one["figures"]["drift"]["value"]
        decayed = one["limits_broken"][1:]
        one["limits_broken"] = [f"drift {drift:.4g} nats (max_drift), at most 1", *decayed]
    missed = range(len(sweep["settings"]))
    by_drift = [(len(one["limits_broken"]), one["figures"]["drift"]["value"]) for one in sweep["settings"]]
    sweep["nearest"] = sorted(missed, key=by_drift.__getitem__)
    return sweep


def all_failed() -> Sweep:
    trials = [lost(number, "failed", f"OutOfMemoryError on node {number % 2}") for number in range(5)]
    nothing = {"mean": None, "tail": None, "incidents": None}
    return unchosen(settings=[], trials=trials, risk_cost=[], reference=nothing, pilot=None, dimensions=[])


def large(count: int = 115) -> Sweep:
    """A random search over many settings, some with a huge drift."""
    rows = [
        ("ra_dpo2", "cvar", round(0.05 + 0.008 * i, 3), 0.1, 0.1 + 0.002 * i, 0.05, 0.03, 0.05 * 1.06**i)
        for i in range(count)
    ]
    settings = [setting(*row) | {"front": index % 9 == 0} for index, row in enumerate(rows)]
    for index, one in enumerate(settings):
        one["options"]["loss.alpha"] = 0.1 + index / 1000
    trials = [trial(2 * index + seed, one, seed) for index, one in enumerate(settings) for seed in (0, 1)]
    names = ["loss.method", "risk.level", "loss.alpha"]
    return make_sweep(settings=settings, trials=trials, dimensions=names, search="random", test=[], runner_up=None)


def one_prompt() -> Sweep:
    settings = [setting(*row) | {"figures": figures(*row[4:], half=None)} for row in SETTINGS]
    reference = {"mean": figure(0.1), "tail": figure(-0.2), "incidents": figure(0.0)}
    return make_sweep(settings=settings, num_prompts=1, reference=reference, test=[])


def one_setting() -> Sweep:
    sweep = make_sweep(chosen=0, runner_up=None, test=[], seeds=[0], pilot=None, dimensions=[])
    only = sweep["settings"][3] | {"options": {}, "seeds": [0]}
    return sweep | {"settings": [only], "trials": sweep["trials"][6:7]}


def gaps() -> Sweep:
    """Everything that may be None is None."""
    sweep = make_sweep(test=[])
    for one in sweep["settings"]:
        one |= {"expected_cost": None, "seconds": None, "seconds_per_step": None}
        one["figures"] |= {"incidents_gain": None, "reward_accuracy": None}
    sweep["settings"][4]["figures"] |= {"drift": None, "mean_gain": None, "tail_gain": None}
    for one in sweep["trials"]:
        one |= {"seconds": None, "stages": {}, "report": None}
    for row in sweep["risk_cost"]:
        row |= dict.fromkeys(("seconds_per_step", "ratio_to_dpo", "reference_bytes", "loss_avoided_per_1000"))
    keys = ("chosen", "chosen_on_everything", "same_choice", "seconds_pilot", "seconds_saved")
    sweep["pilot"] |= dict.fromkeys(keys)
    sweep["pilot"]["rank_agreement"] = {"mean": None, "tail": None, "drift": None}
    sweep["tolerance"] = dict.fromkeys(sweep["tolerance"], None) | {"whole_interval": False, "allow_decayed": True}
    sweep["shared"] = {"stages": {}, "reference_passes": None, "seconds_total": None, "trials_at_once": None}
    return sweep


def costed() -> Sweep:
    """Chosen by the expected cost of incidents."""
    sweep = make_sweep(chosen=5, runner_up=4, test=[], tolerance=tolerance(cost_per_incident=100.0))
    for one in sweep["settings"]:
        one["expected_cost"] = 1e5 * one["figures"]["incidents"]["value"]
    for row in sweep["risk_cost"]:
        row["loss_avoided_per_1000"] = figure(3000.0, 1800.0)
    return sweep


def long_names() -> Sweep:
    sweep = make_sweep()
    for index, one in enumerate(sweep["settings"]):
        one["name"] = f"{index}_" + "a_very_long_name_without_any_blank" * 5
        one["options"]["train.optim.a_rather_long_option"] = "value" * 20
    sweep["dimensions"].append("train.optim.a_rather_long_option")
    return sweep


EDGES = {
    "usual": make_sweep,
    "nothing qualifies": unchosen,
    "all failed": all_failed,
    "many": large,
    "one prompt": one_prompt,
    "one setting": one_setting,
    "gaps": gaps,
    "long names": long_names,
    "costed": costed,
    "chosen on test": lambda: make_sweep(split="test", test=[]),
}
