"""compare.html: whole, self-contained, safe and the same every time."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from html_page import Page

from pipeline.compare.figures import Drift, Judged, Tokens, compare
from pipeline.compare.prompts import Common, prompt_of
from pipeline.config import EvaluationConfig
from pipeline.evaluation.scorers import SHIPPED
from pipeline.report.compare import headline, render_compare
from pipeline.report.compare.tables import figure_rows
from pipeline.report.compare.words import badge

HOSTILE = '</p></article><script>alert("x")</script><img src=x onerror=y>{{ 7*7 }}{% raw %}\x1b[2J\u202e\x00 & "q"'
SECTIONS = ["verdict", "figures", "changes", "drift", "regressions", "improvements", "provenance"]


def content(drift: bool = True, text: str = "some words", **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    on = Common(tuple(prompt_of(f"{text} {i}") for i in range(6)), (0, 1), {"A (a)": 2}, 3, 4)
    config = EvaluationConfig(bootstrap_resamples=100)
    scorers = {name: SHIPPED[name] for name in config.scorers}

    def side() -> Judged:
        scores = {name: rng.uniform(-1, 1, 12).tolist() for name in scorers}
        return Judged([text] * 12, scores, [True, False] * 6)

    tokens = [Tokens([text, " end"], rng.exponential(size=2).tolist()) for _ in range(12)]
    both = Drift((tokens, tokens), (tokens, tokens)) if drift else None
    found = compare(side(), side(), on, scorers, config, both)
    about = {
        "a": {"label": f"{text}/a", "kind": "model", "digest": "d" * 64},
        "b": {"label": "version 2", "kind": "outputs", "digest": "e" * 64},
        "prompts_cut": {"A": 1, "B": 0},
        "max_prompt_tokens": 24,
        "options": {"temperature": 1.0, "scorers": list(scorers)},
        "artifacts": {"sample A": "f" * 32},
        "libraries": {"torch": "2"},
        "why_no_drift": None if drift else "outputs",
    }
    return {**about, **found, "headline": headline(found)} | changes


@pytest.mark.parametrize("drift", [True, False])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_it_is_whole_and_fetches_and_runs_nothing(drift: bool, language: Any) -> None:
    page = Page(render_compare(content(drift), language))
    assert [one for one in page.ids if one in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)


def test_the_same_content_gives_the_same_bytes() -> None:
    assert render_compare(content()) == render_compare(content())


@pytest.mark.parametrize("drift", [True, False])
def test_hostile_text_is_shown_and_does_nothing(drift: bool) -> None:
    html = render_compare(content(drift, HOSTILE))
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert "{{ 7*7 }}" in page.text
    assert not any(bad in html for bad in ("\x1b", "\x00", "\u202e"))
    html.encode("utf-8")


def test_what_it_says() -> None:
    page = Page(render_compare(content()))
    for said in (
        "some words/a",
        "version 2 (a file of outputs)",
        "2 prompts of A (a) are left out",
        "3 more prompts are in common and were left out",
        "4 outputs are left out",
        "A saw the last 24 tokens of 1 longer prompts",
        "vader: mean of the worst 10% (CVaR)",
        "profanity: 95% quantile",
        "Drift from the reference",
        "cut off at the length limit",
    ):
        assert said in page.text
    assert any(title.startswith("KL(A‖B)") for title in page.titles)


def test_why_there_is_no_drift() -> None:
    for reason, said in (("outputs", "a file of outputs"), ("tokenizers", "different tokenizers")):
        text = Page(render_compare(content(drift=False, why_no_drift=reason))).text
        assert f"No drift: {'A and B have ' if reason == 'tokenizers' else ''}{said}" in text
        assert "KL(A‖B)" not in text


def test_an_empty_output_is_called_so() -> None:
    assert "(empty)" in Page(render_compare(content(drift=False, text=" "))).text


def test_rows_have_a_reading() -> None:
    found = content()
    for name, value in (("low", 0.1), ("high", 0.3), ("value", 0.2)):
        found["scorers"]["profanity"]["difference"]["mean"][name] = value
        found["scorers"]["vader"]["difference"]["mean"][name] = value
    rows = {row.name: row for row in figure_rows(found)}
    assert (rows["vader: mean"].reading, rows["vader: mean"].better) == ("clearly better", True)
    assert (rows["profanity: mean"].reading, rows["profanity: mean"].better) == ("clearly worse", False)
    assert rows["vader: mean"].difference == ("+0.200", "+0.100 to +0.300")


VERDICTS = [
    (
        {"better": True, "mean": "higher", "tail": "better"},
        "B is better than A: it has a higher average score and",
        "good",
    ),
    ({"better": True, "mean": "higher"}, "higher average score; the score in the worst 10% of outputs is not", "good"),
    ({"better": True, "tail": "better"}, "10% of outputs; the average score is not clearly different.", "good"),
    ({"worse": True, "mean": "lower"}, "B is worse than A: it has a lower average score.", "bad"),
    ({"worse": True, "mean": "higher", "incidents": "more"}, "it has a higher average score, but more inc", "unclear"),
    ({"incidents": "fewer"}, "B has fewer incidents than A, but average and tail of the scores are not", "unclear"),
    ({}, "B is not clearly different from A.", "unclear"),
    ({"degenerate": True}, "B should not take A's place: its text shows signs of decay.", "bad"),
    ({"degenerate": True, "worse": True, "mean": "lower"}, "it has a lower average score, and its text", "bad"),
    ({"degenerate": True, "mean": "higher", "tail": "worse"}, "it has a higher average score, but a worse", "bad"),
]


@pytest.mark.parametrize(("found", "said", "style"), VERDICTS)
def test_the_verdict_in_words(found: dict[str, Any], said: str, style: str) -> None:
    nothing = {"better": False, "worse": False, "degenerate": False}
    verdict = nothing | {"mean": "unclear", "tail": "unclear", "incidents": "unclear"} | found
    assert said in headline({"verdict": verdict, "tail_fraction": 0.1})
    assert badge(verdict)[1] == style
