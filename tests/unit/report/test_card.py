"""The model card: what it must say, in both forms, and that nothing in it is markup."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).parent))
from html_page import Page

from pipeline.report.card import CardInputs, card_html, card_markdown
from pipeline.report.inputs import ReportInputs

EXPLANATION: dict[str, Any] = {
    "num_worst": 3,
    "tokens": [{"text": " awful|", "count": 4, "risk": 2.0, "share": 0.25, "mean": 0.5, "mean_elsewhere": None}],
}
PROVENANCE: dict[str, Any] = {
    "model": "some/model",
    "recipe": "reviews",
    "reference": "0f0f",
    "data": "da7a",
    "config": "c0f1",
    "code": "c0de",
    "stages": {"align": "a119"},
    "libraries": {"torch": "2.13.0"},
}


@pytest.fixture
def card(inputs: ReportInputs) -> CardInputs:
    return CardInputs(
        "Policy of reviews",
        inputs.config,
        PROVENANCE,
        evaluation=inputs.evaluation,
        unseen_share=0.221,
        explanation=EXPLANATION,
        data_stats=inputs.data_stats,
        token_stats=inputs.token_stats,
        notes=inputs.notes,
    )


def with_config(card: CardInputs, section: str, **changes: Any) -> CardInputs:
    return dataclasses.replace(card, config={**card.config, section: {**card.config[section], **changes}})


def test_it_says_what_an_auditor_asks_for(card: CardInputs, inputs: ReportInputs) -> None:
    page, text = Page(card_html(card)).text, card_markdown(card)
    figures = inputs.evaluation["scorers"]["vader"]["difference"]["mean"]
    for one in (page, text.replace("\\", "")):
        assert "ra_dpo2, beta 0.1, alpha 0.5, cvar at 0.5" in one
        assert f"{figures['value']:+.3f}".replace("-", "−") in one
        assert f"{figures['low']:+.3f} to {figures['high']:+.3f}".replace("-", "−") in one
        assert inputs.evaluation["verdict"]["headline"] in one
        assert "stands in the audit trail" in one
        assert "no reason was written down (option risk.reason)" in one
        assert "With 12 prompts a fault that shows in up to 22.1% of them" in one
        for digest in ("0f0f", "da7a", "c0f1", "c0de", "a119"):
            assert digest in one


def test_the_reason_for_the_level(card: CardInputs) -> None:
    text = card_markdown(with_config(card, "risk", reason="the pilot's choice, signed by A. Sato"))
    assert "Why this measure and level: the pilot's choice, signed by A. Sato" in text


def test_the_header_is_what_the_hub_reads(card: CardInputs) -> None:
    _, header, body = card_markdown(card).split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    assert body.lstrip().startswith("# Policy of reviews")


HOSTILE = "x](javascript:alert(1)) <script>alert(1)</script> | `a` \n\n# title\n* item & ![i](http://h/p.png) **b**"


def test_hostile_text_is_no_markup(card: CardInputs) -> None:
    hostile = with_config(with_config(card, "data", path=HOSTILE), "risk", reason=HOSTILE)
    page = Page(card_html(hostile))
    assert "script" not in page.tags
    assert HOSTILE.split("\n")[0] in page.text
    body = card_markdown(hostile).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inside = [child for token in tokens for child in token.children or []]
    assert not {"link_open", "image", "html_inline", "html_block", "code_inline", "strong_open"} & {
        one.type for one in (*tokens, *inside)
    }
    shown = "".join(child.content for child in inside if child.type == "text")
    assert re.sub(r"\s+", " ", HOSTILE) in shown, "all of it is there to be read"


def test_the_reference_has_a_card_without_an_evaluation(card: CardInputs) -> None:
    reference = dataclasses.replace(card, name="Reference", evaluation=None, explanation=None)
    page = Page(card_html(reference)).text
    assert "to which every roll-back leads" in page
    assert "Reward accuracy" not in page
    assert "Why this measure" not in page


def test_the_same_inputs_give_the_same_bytes(card: CardInputs) -> None:
    assert card_markdown(card) == card_markdown(card)
    assert card_html(card) == card_html(card)
