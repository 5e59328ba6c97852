"""The sweep's page: whole, self-contained, safe, the same every time, and right about what it says first."""

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from html_page import Page

from pipeline.report.sweep import render_sweep
from pipeline.report.sweep.decision import decide
from pipeline.report.sweep.tables import cost_bars, setting_of
from pipeline.report.sweep.words import listed, setting_text, tolerated

SECTIONS = ["decision", "commands", "compared", "front", "sensitivity", "settings", "cost", "risk", "pilot", "trials"]
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


@pytest.fixture(scope="module")
def html() -> str:
    return render_sweep(make_sweep())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", EDGES)
def test_the_page_is_whole_and_fetches_nothing(name: str) -> None:
    sweep = EDGES[name]()
    result = render_sweep(sweep)
    page = Page(result)
    wanted = [one for one in SECTIONS if one != "pilot" or sweep["pilot"]]
    assert [one for one in page.ids if one in SECTIONS] == wanted
    assert len(page.ids) == len(set(page.ids))
    assert all(one.startswith("#") and one[1:] in page.ids for one in page.references)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not re.search(r"url\((?!#)", result)
    assert "@import" not in result
    without_namespaces = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[\w/]+"', "", result)
    assert "http" not in without_namespaces.replace('http-equiv="Content-Security-Policy"', "")
    assert not re.search(r"\bnan\b|\binf\b|None|Undefined", page.text)


def test_two_renders_are_identical_and_leave_the_content_as_it_is(html: str) -> None:
    sweep = make_sweep()
    assert render_sweep(sweep) == html
    assert sweep == make_sweep()


def test_the_decision_comes_first_with_the_figures_of_the_test_split(html: str) -> None:
    text = Page(html).text
    assert text.index("Take ra_dpo2 with cvar at level 0.9, beta 0.1.") < text.index("jobs/sweep.py")
    assert "Chosen and confirmed" in text
    words = " ".join(text.split())
    assert "the worst 10% of the outputs score on average at most 0.02 below the reference's" in words
    assert "On the test split, by which nothing was chosen" in words
    assert "Average vader score: 0.287 (95% interval 0.237 to 0.337) beside the reference's 0.186" in words
    assert "clearly better (+0.101, +0.041 to +0.161)" in words
    assert "Verdict of seed 1: The policy is better" in words
    assert "among the 9 of 13 settings that keep all limits" in words
    assert "1 of 28 trials failed" in words


def test_commands_costs_and_reasons_are_printed(html: str) -> None:
    words = " ".join(Page(html).text.split())
    for wanted in (
        make_sweep()["command"],
        make_sweep()["chosen_command"],
        "63.8 MB",
        "hidden tier",
        "Done once for all trials: data 2.0 s",
        "together 1 min 54 s",
        "26 of 28 trials finished, 1 failed, 1 stopped early",
        "more than 20 steps had a loss that is not finite",
        "on everything it was ra_dpo2/cvar 0.9, beta 0.1",
        "saved an estimated 11 min 30 s",
        "too few settings",
        "the tail mass kept: 1 is risk-neutral",
    ):
        assert wanted in words
    assert Page(html).tags.count("details") == 3


def test_a_choice_that_was_not_tested_is_not_confirmed() -> None:
    decision = decide(make_sweep(test=[]))
    assert decision.badge[0] == "Chosen, not confirmed"
    assert decision.headline == "Best by the validation split: ra_dpo2 with cvar at level 0.9, beta 0.1."
    assert "has not been judged by the test split" in decision.warnings[0]
    assert decision.lead.startswith("On the validation split")


def test_a_choice_by_the_test_split_is_warned_of() -> None:
    for tests in ([], make_sweep()["test"]):
        decision = decide(make_sweep(split="test", test=tests))
        assert decision.badge[1] == "unclear"
        assert "chosen by the figures of the test split" in decision.warnings[0]
    assert "no split is left" in render_sweep(make_sweep(split="test", test=[]))


def test_a_limit_that_breaks_on_the_test_split_is_said_first() -> None:
    sweep = make_sweep()
    sweep["test"][0]["limits_broken"] = ["drift 5.6 nats (max_drift), at most 5", "its text shows signs of decay"]
    decision = decide(sweep)
    assert decision.badge == ("Chosen, but breaks a limit on test", "bad")
    assert "breaks what is tolerated: drift 5.6 nats (max_drift), at most 5; its text" in decision.warnings[0]
    assert decision.headline.startswith("Do not take ra_dpo2 with cvar at level 0.9, beta 0.1 yet")


@pytest.mark.parametrize(
    ("gain", "incidents", "badge"),
    [(0.1, 0.06, "Chosen and confirmed"), (0.02, 0.06, "Chosen, gain not clear"), (0.1, 0.09, "Chosen, mixed on test")],
)
def test_the_badge_says_no_more_than_the_intervals(gain: float, incidents: float, badge: str) -> None:
    sweep = make_sweep()
    sweep["test"][0]["figures"] = figures(gain, 0.0, incidents, 3.0)
    assert decide(sweep).badge[0] == badge


def test_nothing_qualifies_names_the_nearest_misses() -> None:
    sweep = unchosen()
    decision = decide(sweep)
    assert decision.headline == "Nothing qualifies: all 13 settings break a limit."
    assert len(decision.points) == 3
    assert decision.points[0].startswith("ra_dpo2 with cvar at level 0.5, beta 0.2: drift 1.45 nats (max_drift), at ")
    assert "Nothing is chosen." in render_sweep(sweep)


def test_without_a_finished_trial_the_reasons_are_counted() -> None:
    decision = decide(all_failed())
    assert decision.headline == "Nothing can be chosen: no trial finished."
    assert decision.points == ["OutOfMemoryError on node 0 (3 trials)", "OutOfMemoryError on node 1 (2 trials)"]


def test_a_single_prompt_is_warned_of_and_shows_no_interval() -> None:
    sweep = one_prompt()
    assert any("single prompt" in one for one in decide(sweep).warnings)
    assert "A single prompt gives no intervals" in render_sweep(sweep)


def test_a_choice_by_cost_says_so() -> None:
    sweep = costed()
    assert "the least expected cost of incidents (at 100 each)" in decide(sweep).reasons[1]
    text = Page(render_sweep(sweep)).text
    assert "2,700" in text
    assert "+1,200 to +4,800" in text
    assert "at 100 per incident" in text


def test_many_settings_are_folded_and_their_bars_are_means() -> None:
    sweep = large()
    page = Page(render_sweep(sweep))
    assert "75 further settings" in page.text
    bars = cost_bars(sweep)
    assert len(bars.bars) == 41
    assert bars.bars[-1].name == "mean of 75 others"
    assert max(float(width) for bar in bars.bars for _, _, width in bar.parts) <= 100
    assert "its other options differ too" in page.text


def test_bars_hold_what_no_stage_accounts_for() -> None:
    bars = cost_bars(make_sweep())
    assert [name for _, name in bars.keys] == ["align", "sample_policy", "evaluate", "report", "other"]
    assert sum(float(width) for _, _, width in bars.bars[0].parts) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style></section><b onclick='x'>",
        "<!-- ]]> {{ 7 * 7 }} {% raw %} $\\frac{1}{0}$",
        "nul \x00 escape \x1b[31m bell \x07 \x85 rtl \u202e end \ud800 \uffff",
        "",
    ],
)
def test_hostile_text_stays_text(html: str, text: str) -> None:
    sweep = make_sweep(recipe=text, command=text, chosen_command=text, primary_scorer=text, machine=text)
    sweep["versions"] = {text: text}
    sweep["dimensions"].append(text)
    for one in sweep["settings"]:
        one |= {"name": text, "method": text, "measure": text if one["measure"] else None, "limits_broken": [text]}
        one["options"][text] = text
    for one in sweep["trials"]:
        one |= {"options": {text: text}, "state": text, "reason": text, "report": text, "stages": {text: 3.0}}
    for one in sweep["test"]:
        one |= {"verdict": [text], "reports": [text]}
    for row in sweep["risk_cost"]:
        row |= {"method": text, "reference_tier": text}
    sweep["pilot"] |= {"kept": [text], "dropped": [text], "chosen": text, "chosen_on_everything": text}
    sweep["shared"]["stages"] = {text: 2.0}
    result = render_sweep(sweep)
    page = Page(result)
    assert set(page.tags) <= set(Page(html).tags)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", result)
    result.encode("utf-8")
    if text.isprintable():
        assert text in page.text


def test_every_limit_is_said_in_words() -> None:
    sweep = make_sweep(tolerance=tolerance(tail_drop=0.0, max_incidents=0.0015, whole_interval=True))
    assert tolerated(sweep) == [
        "the worst 10% of the outputs score on average not below the reference's",
        "drift is at most 5 nats a response",
        "at most 0.15% of the outputs are incidents (vader below −0.5)",
        "the text shows no sign of decay",
    ]
    assert "whole 95% interval" in decide(sweep).reasons[0]
    free = dict.fromkeys(("tail_drop", "max_drift"))
    assert "No limit was set." in decide(make_sweep(tolerance=tolerance(**free, allow_decayed=True))).reasons[0]


def test_a_trial_belongs_to_the_setting_that_names_the_most_of_its_options() -> None:
    sweep = make_sweep(settings=[{"options": {"a": 1}}, {"options": {"a": 1, "b": 2}}, {"options": {"a": 2}}])
    assert setting_of(sweep, {"a": 1, "b": 2, "c": 3}) == {"options": {"a": 1, "b": 2}}
    assert setting_of(sweep, {"a": 9}) is None


def test_settings_and_lists_in_words() -> None:
    one = setting("dpo", None, None, 0.1, 0.1, 0.1, 0.1, 3.0)
    assert setting_text(one, ["loss.method", "loss.beta", "train.beta"]) == "dpo, loss.beta 0.1"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a, b", "c", "d"]) == "a, b; c; and d"
