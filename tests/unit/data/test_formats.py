from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.checks import RowError
from pipeline.data.formats import needed_columns, to_pair

PAIRS = DataConfig(path="d.jsonl")
HH = DataConfig(path="d.jsonl", format="hh")
USER = {"role": "user", "content": "Hi"}
HELLO, GO = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "Go"}
SYSTEM = {"role": "system", "content": "Be kind"}


def row(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_plain_columns_under_other_names() -> None:
    config = DataConfig(
        path="d", prompt_column="q", chosen_column="a", rejected_column="b", id_column="i", group_column="g"
    )
    pair = to_pair({"q": "Why?", "a": "So.", "b": "No.", "i": 7, "g": "x"}, config)
    assert (pair.row_id, pair.group, pair.prompt, pair.chosen, pair.rejected, pair.chat) == (
        "7", "x", "Why?", "So.", "No.", False,
    )  # fmt: skip


def test_id_is_a_digest_of_the_content_and_group_the_prompt() -> None:
    pair = to_pair(row("p", "c", "r"), PAIRS)
    assert pair.group == "p"
    assert len(pair.row_id) == 16
    assert pair.row_id == to_pair(row("p", "c", "r") | {"other": 1}, PAIRS).row_id
    assert len({to_pair(row(*texts), PAIRS).row_id for texts in ("pcr", "prc", ("pc", "", "r"), ("p", "cr", ""))}) == 4


@pytest.mark.parametrize(
    "raw",
    [
        row([SYSTEM, USER], "Hello", "Go"),
        row([SYSTEM, USER], [HELLO], [GO]),
        row([SYSTEM, USER], [SYSTEM, USER, HELLO], [SYSTEM, USER, GO]),
        row("Hi", [SYSTEM, USER, HELLO], [SYSTEM, USER, GO]),
        {"chosen": [SYSTEM, USER, HELLO | {"id": 3}], "rejected": [SYSTEM, USER, GO]},
    ],
)
def test_every_shape_of_chat_gives_the_same_pair(raw: dict[str, Any]) -> None:
    pair = to_pair(raw, PAIRS)
    assert json.loads(pair.prompt) == [SYSTEM, USER]
    assert (pair.chosen, pair.rejected, pair.chat) == ("Hello", "Go", True)
    assert pair.row_id == to_pair(row([SYSTEM, USER], "Hello", "Go"), PAIRS).row_id


def test_text_prompt_before_bare_answers() -> None:
    assert json.loads(to_pair(row("Hi", [HELLO], [GO]), PAIRS).prompt) == [USER]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (row("p", "c", None), "wrong type"),
        (row("p", 3, "r"), "wrong type"),
        (row(None, "c", "r"), "wrong type"),
        ({"prompt": "p", "chosen": "c"}, "missing field"),
        ({"prompt": [USER], "chosen": "c"}, "missing field"),
        (row([USER], [HELLO], "r"), "wrong type"),
        (row([USER], ["Hello"], [GO]), "wrong type"),
        (row([USER], [{"role": "assistant"}], [GO]), "wrong type"),
        (row([USER], [{"role": "assistant", "content": [{"type": "image"}]}], [GO]), "wrong type"),
        (row([USER], [USER], [GO]), "malformed messages"),
        (row([USER], [], [GO]), "malformed messages"),
        (row(3, [HELLO], [GO]), "wrong type"),
        ({"chosen": [USER, HELLO], "rejected": [SYSTEM, USER, GO]}, "prompts differ"),
    ],
)
def test_faulty_rows(raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_pair(raw, PAIRS)
    assert caught.value.reason == reason


def test_chat_without_any_question_is_an_empty_prompt() -> None:
    for raw in (
        row([], "c", "r"),
        {"chosen": [HELLO], "rejected": [GO]},
        row([{"role": "user", "content": ""}], "c", "r"),
    ):
        assert to_pair(raw, PAIRS).prompt == ""


def test_hh_transcript() -> None:
    start = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: What is a pen?\n\nAssistant:"
    pair = to_pair({"chosen": start + " A tool.", "rejected": start + " No\n\nidea"}, HH)
    assert (pair.prompt, pair.chosen, pair.rejected) == (start, " A tool.", " No\n\nidea")
    assert (pair.group, pair.chat) == ("Hi there", False)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d", "prompts differ"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "prompts differ"),
        ("Human: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: d", "malformed transcript"),
        ("\n\nAssistant: b", "\n\nAssistant: d", "malformed transcript"),
        ("\n\nHuman: a", "\n\nHuman: a", "malformed transcript"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: b", "malformed transcript"),
        ("", "\n\nHuman: a\n\nAssistant: b", "malformed transcript"),
        (None, "\n\nHuman: a\n\nAssistant: b", "wrong type"),
    ],
)
def test_faulty_transcripts(chosen: Any, rejected: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_pair({"chosen": chosen, "rejected": rejected}, HH)
    assert caught.value.reason == reason


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner)
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected"]), ANYTHING), st.sampled_from([PAIRS, HH]))
def test_any_json_is_a_pair_or_a_row_fault(raw: dict[str, Any], config: DataConfig) -> None:
    with contextlib.suppress(RowError):
        pair = to_pair(raw, config)
        assert all(isinstance(text, str) for text in (pair.prompt, pair.chosen, pair.rejected, pair.group))


def test_needed_columns_follow_the_shape() -> None:
    config = DataConfig(path="d", id_column="i", group_column="g")
    assert set(needed_columns(config, {"chosen": "text"})) == {"prompt", "chosen", "rejected", "i", "g"}
    assert set(needed_columns(config, {"chosen": [USER]})) == {"chosen", "rejected", "i", "g"}
    assert set(needed_columns(HH, {"chosen": "text"})) == {"chosen", "rejected"}
