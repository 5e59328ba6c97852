from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import ended, finished, sweep_of, trials_of

from pipeline.report.sweep import render_sweep
from pipeline.report.sweep.tables import setting_of
from pipeline.sweep.judged import Ran, judge
from pipeline.sweep.result import Facts, sweep_json
from pipeline.sweep.space import grid, renumbered
from pipeline.sweep_config import SweepConfig, Tolerance

SETTINGS = [
    {"loss.method": "dpo"},
    {"loss.method": "ra_dpo2", "risk.level": 0.97},
    {"loss.method": "ra_dpo2", "risk.level": 0.5},
]


def facts(ran: list[Ran]) -> Facts:
    steps = {str(one.outcome.summary): 0.2 if one.trial.run.loss.method == "dpo" else 0.3 for one in ran}
    return Facts("made", "python jobs/sweep.py", 2, 100.0, steps, {"scalar": 4, "hidden": 400}, {"ray": "2"})


def content(ran: list[Ran], tested: list[Ran] | None = None, **tolerance: Any) -> dict[str, Any]:
    allowed = Tolerance(**tolerance)
    config: SweepConfig = sweep_of({"loss.method": ["dpo"]}, seeds=[0, 1], tolerance=allowed.model_dump())
    judged = judge(ran, allowed)
    found = sweep_json(config, ran, judged, None if tested is None else judge(tested, allowed), facts(ran))
    assert json.loads(json.dumps(found, allow_nan=False)), "strict JSON"
    assert render_sweep(found).startswith("<!DOCTYPE html>")
    return found


def test_settings_trials_and_choice(tmp_path: Path) -> None:
    """Two seeds of three settings; dpo drifts too far, one trial failed."""
    trials = trials_of(SETTINGS, (0, 1))
    drifts = (9.0, 9.0, 4.0, 4.4, 1.0, 1.0)
    ran = [finished(tmp_path, t, drift=d, mean=0.01 * d) for t, d in zip(trials[:-1], drifts[:-1], strict=True)]
    ran.append(ended(trials[-1], "failed", "the loss is not finite"))
    found = content(ran, max_drift=5, cost_per_incident=10)
    assert [one["name"] for one in found["settings"]] == ["dpo", "ra_dpo2 cvar 0.97", "ra_dpo2 cvar 0.5"]
    assert [one["seeds"] for one in found["settings"]] == [[0, 1], [0, 1], [0]]
    assert found["settings"][1]["figures"]["drift"]["value"] == pytest.approx(4.2)
    assert found["settings"][0]["limits_broken"] == ["drift 9 nats (max_drift), at most 5"]
    assert found["settings"][0]["measure"] is None
    assert (found["settings"][2]["measure"], found["settings"][2]["level"]) == ("cvar", 0.5)
    assert found["settings"][0]["seconds"] == 44
    assert found["chosen"] == 2, "equal cost: less drift"
    assert found["runner_up"] == 1
    assert [one["state"] for one in found["trials"]] == ["finished"] * 5 + ["failed"]
    assert found["trials"][5]["reason"] == "the loss is not finite"
    assert found["trials"][5]["report"] is None
    assert found["shared"]["reference_passes"] == 1
    assert found["shared"]["stages"] == {"data": 2.0, "reference": 10.0, "sample_reference": 5.0}


def test_reference_passes_are_counted_not_claimed(tmp_path: Path) -> None:
    trials = trials_of(SETTINGS)
    ran = [finished(tmp_path, t, artifacts={"reference": f"r{t.number % 2}"}) for t in trials]
    assert content(ran)["shared"]["reference_passes"] == 2


def test_what_a_method_costs_and_avoids(tmp_path: Path) -> None:
    """The reference has 6% incidents; dpo's 8% lose 200 in 1,000 outputs at 10 each, ra_dpo2's best 1% avoid 500."""
    incidents = (0.08, 0.05, 0.01)
    ran = [finished(tmp_path, t, incidents=i) for t, i in zip(trials_of(SETTINGS), incidents, strict=True)]
    dpo, risky = content(ran, cost_per_incident=10)["risk_cost"]
    assert dpo["loss_avoided_per_1000"]["value"] == pytest.approx(-200)
    assert risky["loss_avoided_per_1000"]["value"] == pytest.approx(500)
    assert risky["loss_avoided_per_1000"]["low"] < 500 < risky["loss_avoided_per_1000"]["high"]
    assert (dpo["reference_bytes"], risky["reference_bytes"]) == (4, 400)
    assert (dpo["ratio_to_dpo"], risky["ratio_to_dpo"]) == (1, pytest.approx(1.5))
    assert (dpo["settings"], risky["settings"]) == (1, 2)
    assert content(ran)["risk_cost"][0]["loss_avoided_per_1000"] is None, "without a cost nothing can be said"


def test_the_test_split_is_found_by_what_a_setting_is(tmp_path: Path) -> None:
    trials = trials_of(SETTINGS)
    ran = [finished(tmp_path, t, mean=0.1 * (t.number + 1)) for t in trials]
    again = renumbered([trials[1].judged_by("test"), trials[2].judged_by("test")])  # the runner-up comes first
    found = content(ran, [finished(tmp_path / "test", t, mean=0.05 * (t.number + 1)) for t in again])
    assert [(one["role"], one["setting"]) for one in found["test"]] == [("chosen", 2), ("runner-up", 1)]
    assert [one["figures"]["mean"]["value"] for one in found["test"]] == pytest.approx([0.1, 0.05])
    assert found["test"][0]["verdict"] == ["Verdict of trial 1."]


def test_nothing_finished() -> None:
    found = content([ended(trial, "failed", "the loss is not finite") for trial in trials_of(SETTINGS)])
    assert (found["settings"], found["chosen"], found["runner_up"], found["test"]) == ([], None, None, [])
    assert found["reference"] is None
    assert found["risk_cost"] == []
    assert found["shared"]["reference_passes"] == 0
    assert found["tail_fraction"] == 0.1
    assert "Nothing can be chosen: no trial finished." in render_sweep(found)
    assert "the loss is not finite" in render_sweep(found)


def test_every_trial_finds_its_setting(tmp_path: Path) -> None:
    """Those of dpo name no level, those of ra_dpo2 do; the options that a method does not read are named by none."""
    space = {"loss.method": ["dpo", "ra_dpo2"], "risk.level": [0.97, 0.5], "loss.beta": [0.1, 0.2]}
    trials = trials_of(grid(sweep_of(space)), (0, 1))
    found = content([finished(tmp_path, trial, mean=0.01 * trial.number) for trial in trials])
    names = [setting_of(found, one["options"])["name"] for one in found["trials"]]
    assert names == [name for one in found["settings"] for name in [one["name"]] * 2]
    assert len(set(names)) == 6
    assert found["dimensions"] == ["loss.method", "loss.beta", "risk.level"]


def test_without_intervals_nothing_is_made_up(tmp_path: Path) -> None:
    found = content([finished(tmp_path, trial, half=None) for trial in trials_of(SETTINGS)], cost_per_incident=10)
    assert found["settings"][0]["figures"]["mean"] == {"value": 0.2, "low": None, "high": None}
    avoided = found["risk_cost"][0]["loss_avoided_per_1000"]
    assert avoided == {"value": pytest.approx(100), "low": None, "high": None}


def test_what_is_not_known_of_a_step_is_left_open(tmp_path: Path) -> None:
    ran = [finished(tmp_path, trial) for trial in trials_of(SETTINGS)]
    judged, known = judge(ran, Tolerance()), dataclasses.replace(facts(ran), seconds_per_step={})
    found = sweep_json(sweep_of({"loss.beta": [0.1]}), ran, judged, None, known)
    assert [row["seconds_per_step"] for row in found["risk_cost"]] == [None, None]
    assert [row["ratio_to_dpo"] for row in found["risk_cost"]] == [None, None]
    json.dumps(found, allow_nan=False)
    render_sweep(found)


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 50), st.booleans()),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from([None, 0.05]),
    st.fixed_dictionaries(
        {
            "tail_drop": st.none() | st.floats(0, 1),
            "max_drift": st.none() | st.floats(0.1, 50),
            "cost_per_incident": st.none() | st.floats(0, 1e9),
            "whole_interval": st.booleans(),
        }
    ),
)
@settings(deadline=None, max_examples=8)
def test_any_figures_make_a_page(points: list[Any], half: float | None, tolerance: dict[str, Any]) -> None:
    names = ("mean", "tail", "incidents", "drift", "decayed")
    with tempfile.TemporaryDirectory() as folder:
        trials = trials_of(SETTINGS)
        ran = [
            finished(Path(folder), trial, half=half, **dict(zip(names, point, strict=True)))
            for trial, point in zip(trials, points, strict=True)
        ]
        found = content(ran, **tolerance)
    chosen = found["chosen"]
    assert chosen is None or found["settings"][chosen]["limits_broken"] == []


def test_a_sweep_of_japanese_reports_is_told_in_japanese(tmp_path: Path) -> None:
    """Verdicts are made again from the numbers of the summaries, limits from the figures of the settings."""
    trials = trials_of(SETTINGS, report={"language": "ja"}, evaluation={"split": "validation"})
    tests = trials_of(SETTINGS[2:], report={"language": "ja"}, evaluation={"split": "test"})
    ran = [finished(tmp_path, trial, drift=drift) for trial, drift in zip(trials, (9.0, 4.0, 1.0), strict=True)]
    found = content(ran, [finished(tmp_path, trial, mean=0.3) for trial in tests], max_drift=5)
    assert found["settings"][0]["limits_broken"] == ["乖離 9ナット（max_drift）、上限 5"]
    assert found["test"][0]["verdict"] == [
        "方策モデルは参照モデルより優れています。平均スコアの向上、および下位10%の出力のスコアの改善が認められます。"
    ]
    page = render_sweep(found)
    assert '<html lang="ja">' in page
    assert found["test"][0]["verdict"][0] in page


def test_nothing_keeps_the_limits(tmp_path: Path) -> None:
    found = content([finished(tmp_path, t) for t in trials_of(SETTINGS)], max_drift=1)
    assert found["chosen"] is None
    assert found["chosen_command"] is None
    assert "Nothing" in render_sweep(found)
