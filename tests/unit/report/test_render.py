"""report.html: whole, self-contained, safe and the same every time."""

import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from html_page import Page

from pipeline.records import ScoredSample
from pipeline.report.inputs import ReportInputs
from pipeline.report.page import visible
from pipeline.report.render import render
from pipeline.report.tokens import Scale, risk_scale, token_views

SECTIONS = ["verdict", "figures", "scores", "worst", "pairs", "training", "tokens", "data", "cost", "provenance"]


@pytest.fixture(scope="module")
def html(inputs: ReportInputs) -> str:
    return render(inputs)


def test_every_section_is_there_and_every_id_is_unique(html: str) -> None:
    page = Page(html)
    assert [one for one in page.ids if one in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    internal = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert internal <= set(page.ids)


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_two_renders_are_identical(inputs: ReportInputs, build: Callable[..., ReportInputs], html: str) -> None:
    assert render(inputs) == html
    assert render(build()) == html


def test_the_verdict_and_the_figures_are_printed(inputs: ReportInputs, html: str) -> None:
    page = Page(html)
    assert inputs.evaluation["verdict"]["headline"] in page.text
    for words in ("vader: mean of the worst 10% (CVaR)", "Expected loss avoided per 1,000 outputs", "Reward accuracy"):
        assert words in page.text
    for row in inputs.evaluation["worst"]:
        assert row["policy_text"] in page.text
        assert row["reference_text"] in page.text
    for words in ("13,905", "overlong response", "1 min 35 s", "reused from an earlier run", "2.60.0", "tier: hidden"):
        assert words in page.text
    assert page.tags.count("svg") == 8
    assert any(re.fullmatch(r"log-ratio [+-]\d\.\d+, KL \d+\.\d+, risk \d+\.\d+ \(nats\)", one) for one in page.titles)


def hostile(inputs: ReportInputs, text: str) -> ReportInputs:
    """The same run with ``text`` wherever a model, the data or the user can put one."""
    samples = [replace(one, text=text, prompt=text, tokens=[text] * len(one.tokens)) for one in inputs.samples]
    worst = [row | {"prompt": text, "policy_text": text, "reference_text": text} for row in inputs.evaluation["worst"]]
    return replace(
        inputs,
        recipe=text,
        samples=samples,
        evaluation=inputs.evaluation | {"worst": worst},
        config=inputs.config | {"note": text},
        data_stats={"dropped": {text: 3}, text: 4},
        versions={text: text},
        notes=[text],
        stages=[{"name": text, "key": text, "seconds": 1.0, "reused": False}],
    )


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style></section><b onclick='x'>",
        "<!-- ]]> {{ 7 * 7 }} {% raw %}",
        "nul \x00 escape \x1b[31m bell \x07 \x85 rtl \u202e end \ud800 \uffff",
        "",
    ],
)
def test_hostile_text_stays_text(inputs: ReportInputs, html: str, text: str) -> None:
    result = render(hostile(inputs, text))
    page = Page(result)
    assert set(page.tags) <= set(Page(html).tags)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", result)
    result.encode("utf-8")
    if text.isprintable():
        assert text in page.text


def test_control_characters_become_visible() -> None:
    assert visible("a\x00b\x1bc\n\td\r\ne") == "a␀b␛c\n\td\ne"


def test_a_dpo_run_without_kl_and_risk_renders(build: Callable[..., ReportInputs]) -> None:
    full = build()
    kept = ("step", "split", "loss", "reward_accuracy")
    metrics = [{key: row[key] for key in kept if key in row} for row in full.metrics]
    metrics.append({"step": 25, "split": "train", "loss": float("nan")})
    samples = [replace(one, log_ratio=[], kl=[], risk=[]) for one in full.samples]
    pairs = full.evaluation["pairs"] | {"implicit_reward_accuracy": None, "chosen_risk": {}, "rejected_risk": {}}
    inputs = replace(full, metrics=metrics, samples=samples, evaluation=full.evaluation | {"pairs": pairs})
    text = Page(render(inputs)).text
    assert "Sequential KL" not in text
    assert "Implicit" not in text
    assert "No token figures were recorded" in text


def test_a_report_of_nothing_but_the_evaluation_renders(inputs: ReportInputs) -> None:
    text = Page(render(ReportInputs("r", {}, inputs.evaluation, [], []))).text
    assert "No training metrics were recorded" in text
    assert "No row was dropped" in text


def test_a_long_run_does_not_swell_the_page(build: Callable[..., ReportInputs], html: str) -> None:
    long = [{"step": step, "split": "train", "loss": 0.6, "lr": 1e-4} for step in range(50_000)]
    assert len(render(build(metrics=long))) < 2 * len(html)


def test_a_decayed_policy_is_not_called_better(inputs: ReportInputs) -> None:
    verdict = inputs.evaluation["verdict"] | {"degenerate": True, "better": False, "warnings": ["It repeats itself."]}
    page = Page(render(replace(inputs, evaluation=inputs.evaluation | {"verdict": verdict})))
    assert "Do not use" in page.text
    assert "It repeats itself." in page.text


def test_token_views_choose_the_riskiest_whatever_the_order(inputs: ReportInputs) -> None:
    views = token_views(inputs.samples, "vader")
    shuffled: list[ScoredSample] = random.Random(1).sample(inputs.samples, len(inputs.samples))
    assert views == token_views(shuffled, "vader")
    policy = [one for one in inputs.samples if one.model == "policy"]
    assert views[0]["max_risk"] == max(one.max_risk for one in policy)
    assert [view["why"] for view in views] == ["highest risk"] * 3 + ["typical"] * 2
    assert sum(token["peak"] for token in views[0]["tokens"]) == 1


def test_shades_follow_the_risk(inputs: ReportInputs) -> None:
    scale = Scale((0.1, 0.3, 0.5, 0.75, 1.0))
    assert [scale.level(risk) for risk in (-1.0, 0.05, 0.1, 0.6, 1.0, 9.0, float("inf"))] == [0, 0, 1, 3, 5, 5, 5]
    assert [words for _, words in scale.legend()][0::5] == ["below 0.1", "1 and above"]
    assert risk_scale([]).level(0.0) == 0
    assert list(risk_scale(inputs.samples).edges) == sorted(risk_scale(inputs.samples).edges)
