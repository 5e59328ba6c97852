"""The comparison log: what version and reference say of every output, one JSON row each, in parts of bounded size.

Columns: ``output`` (number, from 1), ``where`` (file and line of the production log), ``id`` and ``time`` as there,
``version``, ``epoch`` (number of the baseline), ``use`` ("baseline", "watched", or "logged" for what the tests leave
out), ``measures`` (``risk`` and ``kl`` in nats, summed over the output; ``tokens``; every scorer's score; what is
watched of them), ``riskiest`` (its riskiest tokens: position, text, nats), ``cut`` and ``anew`` (`Scored`). The text of
prompt and output is not repeated; it stays in the production log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.places import Place

_PART_BYTES = 4 << 20
_RISKIEST = 5


class Comparison:
    """The log's newest part, which is written as a whole at every commit.

    Args:
        part: its name, "" before the first one.
        rows: of it, that count.
    """

    def __init__(self, place: Place, part: str, rows: int) -> None:
        self._place, self._part = place, part
        self._rows: list[bytes] = []
        if part and rows:
            try:
                self._rows = place.read(part).splitlines(keepends=True)[:rows]
            except FileNotFoundError:
                self._rows = []  # retention, or a person, has removed it
            if len(self._rows) not in (0, rows):
                raise ArtifactError(f"{place.root}/{part} lacks rows that were committed; restore it from a copy")
        self._bytes = sum(map(len, self._rows))
        self._changed = False

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, which is written by `write`."""
        self._rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        self._bytes += len(self._rows[-1])
        self._changed = True

    def write(self, today: date) -> tuple[str, int]:
        """Write what was added; returns the part and its number of rows, to be committed."""
        if self._changed:
            self._part = self._part or _part_name(today, 1)
            self._place.write(self._part, b"".join(self._rows))
            self._changed = False
        return self._part, len(self._rows)

    def turn(self, today: date) -> None:
        """After a commit: begin a new part when this one is large enough, or of another day."""
        if self._part and (self._bytes >= _PART_BYTES or _day_of(self._part) != today):
            self._part = _part_name(today, int(self._part[9:17]) + 1)
            self._rows, self._bytes = [], 0

    def forget(self, today: date, keep_days: int) -> int:
        """Remove parts that were begun more than so many days ago; returns how many."""
        oldest = today - timedelta(days=keep_days)
        old = [name for name in self._place.names() if name != self._part and (_day_of(name) or today) < oldest]
        for name in old:
            self._place.remove(name)
        return len(old)


def riskiest(tokens: Sequence[str], risks: Sequence[float]) -> list[tuple[int, str, float]]:
    """The riskiest tokens of an output: position, text, nats; those that hold any."""
    order = sorted(range(len(risks)), key=lambda i: -risks[i])[:_RISKIEST]
    return [(i, tokens[i], float(f"{risks[i]:.6g}")) for i in order if risks[i] > 0]


def _part_name(day: date, number: int) -> str:
    return f"{day:%Y%m%d}-{number:08d}.jsonl"


def _day_of(name: str) -> date | None:
    try:
        return date.fromisoformat(name[:8])
    except ValueError:
        return None
