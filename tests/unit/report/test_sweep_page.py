"""The sweep's page: whole, self-contained, safe, the same every time, and right about what it says first."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from html_page import Page
from sweep_content import (
    EDGES,
    all_failed,
    costed,
    figures,
    large,
    make_sweep,
    one_prompt,
    setting,
    tolerance,
    unchosen,
)

from pipeline.report.sweep import render_sweep
from pipeline.report.sweep.decision import decide
from pipeline.report.sweep.tables import cost_bars, setting_of
from pipeline.report.sweep.words import listed, setting_text, tolerated

SECTIONS = ["decision", "commands", "compared", "front", "sensitivity", "settings", "cost", "risk", "pilot", "trials"]


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
