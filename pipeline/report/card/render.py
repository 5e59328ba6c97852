"""A card as Markdown with the header that Hugging Face's hub reads, and as one self-contained HTML page."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.report.card.content import Block, CardInputs, Table, build
from pipeline.report.page import fill, storable, visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def card_html(inputs: CardInputs) -> str:
    """The card as a page."""
    return fill("card/card.html.j2", inputs.language, card=build(inputs))


def card_markdown(inputs: CardInputs) -> str:
    """The card as README.md: text of models and data is escaped, so that none of it is markup."""
    card = build(inputs)
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignment", "preference-optimization", "ra-dpo"],
    }
    parts = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {_text(card.title)}",
        "",
        _text(card.lead),
    ]
    for section in card.sections:
        parts += ["", f"## {_text(section.heading)}"]
        for block in section.blocks:
            parts += ["", _block(block)]
    return storable("\n".join(parts) + "\n")


def _block(block: Block) -> str:
    if isinstance(block, str):
        return _text(block)
    if isinstance(block, Table):
        rule = "|".join(["---"] * len(block.header))
        rows = [block.header, *block.rows]
        lines = ["| " + " | ".join(map(_text, row)) + " |" for row in rows]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    return "\n".join(f"* {_text(item)}" for item in block)


def _text(text: str) -> str:
    """One line without markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
