"""Faulty rows: what counts as one, and the log that drops, counts and, past a limit, stops.

Pure: nothing is read or written here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.config import DataConfig
from pipeline.errors import DataError
from pipeline.records import DroppedRow, PairRow

CHOSEN_EQUALS_REJECTED = "chosen equals rejected"
DUPLICATE = "duplicate"
DUPLICATE_ID = "duplicate id"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
MALFORMED_TRANSCRIPT = "malformed transcript"
MALFORMED_MESSAGES = "malformed messages"
MISSING_FIELD = "missing field"
PROMPTS_DIFFER = "prompts differ"
WRONG_TYPE = "wrong type"

_SHOWN_CHARACTERS = 80


class RowError(Exception):
    """One row cannot be used. Caught inside this package, which drops the row; users see a `DroppedRow`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def shown(value: Any) -> str:
    """A value as it may stand in a message: its repr, shortened, and always encodable."""
    text = ascii(value) if _has_surrogate(str(value)) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def text_cell(raw: dict[str, Any], column: str) -> str:
    """The text in a column.

    Raises RowError when the column is absent, holds anything but a string (null and NaN included), or holds
    half of a surrogate pair, which JSON can express but UTF-8 cannot.
    """
    if column not in raw:
        raise RowError(MISSING_FIELD, f"no field {column!r}")
    return checked_text(raw[column], f"field {column!r}")


def checked_text(value: Any, name: str) -> str:
    """``value`` if it is a string that UTF-8 can hold; otherwise RowError naming it ``name``."""
    if not isinstance(value, str):
        raise RowError(WRONG_TYPE, f"{name} is {type(value).__name__} {shown(value)}, needed is text")
    if _has_surrogate(value):
        raise RowError(WRONG_TYPE, f"{name} holds half of a surrogate pair, which is no text: {shown(value)}")
    return value


def label_cell(raw: dict[str, Any], column: str) -> str:
    """An id or a group: text or a whole number, as text. Raises RowError for anything else and for blanks."""
    value = raw.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = text_cell(raw, column)
    if not text.strip():
        raise RowError(MISSING_FIELD, f"field {column!r} is empty")
    return text


def check_pair(pair: PairRow) -> None:
    """Raise RowError for a pair that nothing can be learnt from."""
    if not pair.prompt.strip():
        raise RowError(EMPTY_PROMPT)
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not text.strip():
            raise RowError(EMPTY_RESPONSE, f"{name} is empty")
    if pair.chosen == pair.rejected:
        raise RowError(CHOSEN_EQUALS_REJECTED, f"both are {shown(pair.chosen)}")


class DropLog:
    """Collects dropped rows; obeys ``data.strict`` and ``data.max_dropped_fraction``."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.rows: list[DroppedRow] = []

    def drop(self, where: str, row_id: str, reason: str, detail: str = "") -> None:
        """Record one dropped row. With ``data.strict`` raise DataError naming it instead."""
        self.rows.append(DroppedRow(where, row_id, reason, detail))
        if self._config.strict:
            raise DataError(
                f"{where}: {reason}{f' ({detail})' if detail else ''}. data.strict stops at the first faulty row: "
                "correct it, or turn data.strict off to drop and count such rows"
            )

    def counts(self) -> dict[str, int]:
        """Dropped rows by reason, most frequent first."""
        counted = Counter(row.reason for row in self.rows)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def finish(self, total: int) -> None:
        """Judge the log against all ``total`` rows of the stage.

        Raises DataError when none is left or more than ``data.max_dropped_fraction`` of them are dropped.
        """
        dropped, limit = len(self.rows), self._config.max_dropped_fraction
        if dropped < total and dropped <= limit * total:
            return
        share = f"{dropped} of {total} rows of {self._config.path} are unusable"
        if dropped < total:
            remedy = f"that is more than data.max_dropped_fraction ({limit:g}): correct the data or raise the limit"
        else:
            remedy = "no row is left: correct the data, or see whether data.format and the column names fit it"
        raise DataError(f"{share} [{self._reasons()}]; {remedy}")

    def _reasons(self) -> str:
        first = {row.reason: row.where for row in reversed(self.rows)}
        return "; ".join(f"{reason}: {count}, first at {first[reason]}" for reason, count in self.counts().items())


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
