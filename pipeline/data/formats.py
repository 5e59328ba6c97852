"""One raw row to one preference pair: plain columns, chat messages, whole conversations, HH transcripts.

Pure. A row that does not fit raises `RowError` with the reason under which it is dropped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import DataConfig
from pipeline.data.checks import (
    MALFORMED_MESSAGES,
    MALFORMED_TRANSCRIPT,
    MISSING_FIELD,
    PROMPTS_DIFFER,
    WRONG_TYPE,
    RowError,
    checked_text,
    label_cell,
    shown,
    text_cell,
)
from pipeline.records import PairRow

Message = dict[str, str]

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(?:Human|Assistant):")


def needed_columns(config: DataConfig, first_row: Mapping[str, Any]) -> dict[str, str]:
    """The columns a file must have, each with the option that names it.

    Conversations hold their own prompt, so with them the prompt column may be absent.
    """
    columns = {config.chosen_column: "data.chosen_column", config.rejected_column: "data.rejected_column"}
    if config.format == "pairs" and not _is_list(first_row.get(config.chosen_column)):
        columns[config.prompt_column] = "data.prompt_column"
    if config.id_column is not None:
        columns[config.id_column] = "data.id_column"
    if config.group_column is not None:
        columns[config.group_column] = "data.group_column"
    return columns


def to_pair(raw: dict[str, Any], config: DataConfig) -> PairRow:
    """The pair in a row of format 'pairs' or 'hh'. Raises RowError when the row does not hold one."""
    if config.format == "hh":
        prompt, chosen, rejected, group = _from_transcripts(raw, config)
        chat = False
    elif any(_is_list(raw.get(column)) for column in (config.prompt_column, config.chosen_column)):
        messages, chosen, rejected = _from_messages(raw, config)
        # An empty list of messages is an empty prompt: the check on pairs looks for blank text.
        blank = not any(message["content"].strip() for message in messages)
        prompt = group = "" if blank else canonical_json(messages)
        chat = True
    else:
        prompt = group = text_cell(raw, config.prompt_column)
        chosen, rejected = text_cell(raw, config.chosen_column), text_cell(raw, config.rejected_column)
        chat = False
    if config.group_column is not None:
        group = label_cell(raw, config.group_column)
    row_id = content_id(prompt, chosen, rejected) if config.id_column is None else label_cell(raw, config.id_column)
    return PairRow(row_id, group, prompt, chosen, rejected, chat)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_id(*parts: str) -> str:
    """First 16 hex digits of sha256 over the parts as one canonical JSON list."""
    return hashlib.sha256(canonical_json(parts).encode("utf-8")).hexdigest()[:16]


def _from_transcripts(raw: dict[str, Any], config: DataConfig) -> tuple[str, str, str, str]:
    """Prompt, both answers and group of a row of two Anthropic HH transcripts, which share all but the last turn."""
    prompt, chosen, group = _split_transcript(text_cell(raw, config.chosen_column), config.chosen_column)
    other, rejected, _ = _split_transcript(text_cell(raw, config.rejected_column), config.rejected_column)
    if prompt != other:
        raise RowError(PROMPTS_DIFFER, "the transcripts part before their last assistant turn")
    return prompt, chosen, rejected, group


def _split_transcript(text: str, column: str) -> tuple[str, str, str]:
    r"""Prompt up to and with the last "\n\nAssistant:", the answer after it, and the first human turn."""
    turns = list(_TURN.finditer(text))
    if not turns or turns[0].start() != 0 or turns[0].group() != _HUMAN:
        raise RowError(MALFORMED_TRANSCRIPT, f"{column!r} does not start with {_HUMAN!r}: {shown(text)}")
    if turns[-1].group() != _ASSISTANT:
        raise RowError(MALFORMED_TRANSCRIPT, f"{column!r} does not end with an {_ASSISTANT!r} turn")
    first_human = text[turns[0].end() : turns[1].start()].strip()
    return text[: turns[-1].end()], text[turns[-1].end() :], first_human


def _from_messages(raw: dict[str, Any], config: DataConfig) -> tuple[list[Message], str, str]:
    """Prompt messages and both answers, for every common shape of a chat row."""
    columns = (config.chosen_column, config.rejected_column)
    for column in columns:
        if column not in raw:
            raise RowError(MISSING_FIELD, f"no field {column!r}")
    prompt = raw.get(config.prompt_column)
    if all(isinstance(raw[column], str) for column in columns):
        return _messages(prompt, config.prompt_column), text_cell(raw, columns[0]), text_cell(raw, columns[1])
    (prefix, chosen), (other, rejected) = (_conversation(raw[column], column, prompt, config) for column in columns)
    if prefix != other:
        raise RowError(PROMPTS_DIFFER, "the conversations part before their last assistant message")
    return prefix, chosen, rejected


def _conversation(value: Any, column: str, prompt: Any, config: DataConfig) -> tuple[list[Message], str]:
    """What comes before the last assistant message of a conversation, and that message's text."""
    messages = _messages(value, column)
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError(MALFORMED_MESSAGES, f"{column!r} does not end with an assistant message")
    if _is_list(prompt):
        before = _messages(prompt, config.prompt_column)
        if messages[: len(before)] != before:
            messages = before + messages
    elif prompt is not None and len(messages) == 1:
        messages = [{"role": "user", "content": checked_text(prompt, f"field {config.prompt_column!r}")}, *messages]
    return messages[:-1], messages[-1]["content"]


def _messages(value: Any, column: str) -> list[Message]:
    """Messages reduced to role and content (data sets add ids, scores and names)."""
    if not _is_list(value):
        raise RowError(WRONG_TYPE, f"field {column!r} is {type(value).__name__}, needed is a list of messages")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowError(WRONG_TYPE, f"message {number} of {column!r} is {type(message).__name__}, not an object")
        parts = {key: checked_text(message.get(key), f"{key} of message {number} of {column!r}") for key in _KEYS}
        messages.append(parts)
    return messages


_KEYS = ("role", "content")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
