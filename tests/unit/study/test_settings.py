"""Which runs are a setting, and which cannot be compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import EvaluationError
from pipeline.study.runs import StudyRun
from pipeline.study.settings import Setting, settings_of

sys.path.insert(0, str(Path(__file__).parent))
import made

SCORES = np.zeros((3, 2))


def run(method: str = "dpo", **options: Any) -> StudyRun:
    return made.made_run(SCORES, 1.0, method, **options)


def test_runs_that_differ_in_their_seed_are_one_setting() -> None:
    runs = [run("ra_dpo2", seed=1, level=0.97), run(seed=1), run("ra_dpo2", level=0.97), run()]
    found = settings_of(runs)
    assert [setting.label for setting in found] == ["dpo", "ra_dpo2, cvar 0.97"]
    assert [[one.seed for one in its_runs] for its_runs in found.values()] == [[0, 1], [0, 1]]


def test_what_a_method_does_not_use_makes_no_setting() -> None:
    """dpo knows no risk, no alpha and no distribution of the reference; nothing hangs on the number of workers."""
    runs = [run(), run(seed=1, level=0.9, alpha=1.0, num_workers=1, bootstrap_resamples=10)]
    assert list(settings_of(runs)) == [Setting("dpo", None, None, 0.1, 1e-3)]
    tier = replace(runs[1], options={**runs[1].options, "reference.tier": "scalar"})
    assert len(settings_of([runs[0], tier])) == 1


def test_settings_are_in_order() -> None:
    """By rate, method, measure, then from nearly neutral outwards."""
    runs = [run(lr=lr, beta=beta) for lr, beta in ((2e-3, 0.03), (2e-3, 0.1), (2e-3, 1.0), (1e-3, 0.1))]
    runs += [run("ra_dpo2", measure=m, level=x) for m, x in (("erm", 5.0), ("erm", 1.0), ("cvar", 0.5), ("cvar", 0.9))]
    found = list(settings_of([*runs, run("tdpo1")]))
    assert [f"{one.label} at {one.lr:g}" for one in found] == [
        "dpo at 0.001",
        "tdpo1 at 0.001",
        "ra_dpo2, cvar 0.9 at 0.001",
        "ra_dpo2, cvar 0.5 at 0.001",
        "ra_dpo2, erm 1 at 0.001",
        "ra_dpo2, erm 5 at 0.001",
        "dpo, beta 1 at 0.002",
        "dpo at 0.002",
        "dpo, beta 0.03 at 0.002",
    ]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs"),
        ([run(), run()], "the same run"),
        ([run(), run(seed=1, reference="another")], "in the reference"),
        ([run(), replace(run(seed=1), prompt_set="another")], "in the prompts"),
        ([run(), replace(run(seed=1), prompts=("a", "b", "c"))], "in the prompts"),
        ([run(), replace(run(seed=1), scores=np.zeros((3, 1)))], "in the samples"),
        ([run(), replace(run(seed=1), pairs=made.pair_arrays(["film000"], np.ones(1)))], "in the held-out pairs"),
        ([run(), run(seed=1, epochs=3)], "train.epochs 3"),
        ([run(), run("ra_dpo2"), run("ra_dpo2", level=0.9, alpha=1.0)], "loss.alpha 1.0"),
        ([run(), run(seed=1), run("tdpo1")], "lacks the seed 1"),
        ([run(), run("tdpo1", lr=2e-3)], "no dpo at beta 0.1 and rate 0.002"),
        ([run(beta=0.3)], "no dpo at beta 0.1"),
    ],
)
def test_runs_that_cannot_be_compared(runs: list[StudyRun], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        settings_of(runs)
