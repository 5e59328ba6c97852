"""The audit trail for people with other tools: one row a record as CSV, or everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from pipeline.release.state import CANDIDATE
from pipeline.release.trail import Record

COLUMNS = (
    "number",
    "when",
    "who",
    "what",
    "version",
    "alias",
    "before",
    "after",
    "why",
    "decision",
    "version_digest_before",
    "version_digest_after",
    "conditions",
    "digest",
    "previous",
)
"""Of the CSV. ``conditions`` are those of the gate that did not hold, with figure, bound and limit."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_json(records: Iterable[Record]) -> str:
    """Every record with its digest, as they are."""
    rows = [
        {
            "number": record.number,
            "when": record.when,
            "who": record.who,
            "why": record.why,
            **record.event.as_dict(),
            "details": record.details,
            "state": record.state.as_dict(),
            "previous": record.previous,
            "mac": record.mac,
            "digest": record.digest,
        }
        for record in records
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(records: Iterable[Record]) -> str:
    """One row a record, with a header; text that a spreadsheet would take for a formula is quoted."""
    records = list(records)
    identities = {
        record.event.version: str(record.details["id"]) for record in records if record.event.kind == "registered"
    }
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _safe(value) for name, value in _row(record, identities).items()})
    return file.getvalue()


def _row(record: Record, identities: dict[int | None, str]) -> dict[str, Any]:
    moves = [move for move in record.event.moves if move.alias != CANDIDATE] or list(record.event.moves)
    gate = record.details.get("gate", {})
    row: dict[str, Any] = {
        "number": record.number,
        "when": record.when,
        "who": record.who,
        "what": record.event.kind,
        "version": record.event.version,
        "why": record.why,
        "decision": gate.get("outcome"),
        "conditions": "; ".join(
            f"{one['of']} {one['name']} against {one['against']}: {_number(one['value'])}, "
            f"bound {_number(one['bound'])}, limit {_number(one['limit'])}"
            for one in gate.get("conditions", [])
            if not one["holds"]
        ),
        "digest": record.digest,
        "previous": record.previous,
    }
    if moves:
        move = moves[0]  # a decision also moves the candidate, which follows from its version
        row |= {
            "alias": move.alias,
            "before": move.before,
            "after": move.after,
            "version_digest_before": identities.get(move.before),
            "version_digest_after": identities.get(move.after),
        }
    return row


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
