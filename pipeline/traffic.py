"""One line of a production log: what was asked and answered. Written by the serving guard, read by the watch. Pure.

Logs of any other system will do: only ``prompt`` and ``output`` are asked for, and fields that are not named here are
ignored. A line is one JSON object in UTF-8, without line breaks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class LogRow:
    """One output of production.

    Ids are as in `pipeline.records.SampleRow`: those of the prompt as the model saw it, and those of the output, with
    the EOS when one was sampled. They count only for the tokenizer that made them.
    """

    prompt: str
    output: str
    id: str | None = None
    """Of the request, for whoever looks for it."""
    time: str | None = None
    """ISO 8601, UTC."""
    line: str | None = None
    """The line of the registry that the version belongs to."""
    version: int | None = None
    tokenizer: str | None = None
    """Digest of its files (`pipeline.models.contents.tokenizer_contents`)."""
    prompt_ids: tuple[int, ...] | None = None
    output_ids: tuple[int, ...] | None = None
    finished: bool | None = None
    """Whether the output ended by itself, and was not cut."""


def parse(line: bytes) -> LogRow:
    """A row of a log.

    Raises:
        ValueError: with the reason, in words that are the same for every line with the same fault.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    version, finished = value.get("version"), value.get("finished")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version < 0):
        raise ValueError("version is not a whole number")
    if finished is not None and not isinstance(finished, bool):
        raise ValueError("finished is neither true nor false")
    return LogRow(
        _required_text(value, "prompt"),
        _required_text(value, "output"),
        _identifier(value),
        _time(value),
        _text(value, "line"),
        version,
        _text(value, "tokenizer"),
        _ids(value, "prompt_ids"),
        _ids(value, "output_ids"),
        finished,
    )


def dump(row: LogRow) -> bytes:
    """A row as one JSON line with its line break; what is None is left out."""
    value = {name: one for name, one in vars(row).items() if one is not None}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _required_text(value: dict[str, Any], name: str) -> str:
    if name not in value:
        raise ValueError(f"no {name}")
    text = _text(value, name)
    if text is None:
        raise ValueError(f"{name} is not text")
    return text


def _text(value: dict[str, Any], name: str) -> str | None:
    text = value.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{name} is not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which no tokenizer takes
        raise ValueError(f"{name} is not text that UTF-8 can hold") from error
    return text


def _identifier(value: dict[str, Any]) -> str | None:
    found = value.get("id")
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else _text(value, "id")


def _time(value: dict[str, Any]) -> str | None:
    text = _text(value, "time")
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
        # A time without a zone is taken for UTC.
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("time is not ISO 8601") from error
    return when.isoformat()


def _ids(value: dict[str, Any], name: str) -> tuple[int, ...] | None:
    ids = value.get(name)
    if ids is None:
        return None
    if not isinstance(ids, list) or any(type(one) is not int or not 0 <= one < 1 << 31 for one in ids):
        raise ValueError(f"{name} is not a list of token ids")
    return tuple(ids)
