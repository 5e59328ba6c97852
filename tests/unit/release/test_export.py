from __future__ import annotations

import csv
import io
import json

from pipeline.release.export import COLUMNS, as_csv, as_json
from pipeline.release.line import Line
from pipeline.release.trail import Record
from tests.unit.release import lines

GATE = {
    "outcome": "promote",
    "conditions": [
        {
            "of": "policy",
            "name": "mean",
            "against": "reference",
            "value": 0.5,
            "bound": 0.25,
            "limit": 0.1,
            "holds": False,
        },
        {
            "of": "policy",
            "name": "tail",
            "against": "reference",
            "value": 0.5,
            "bound": 0.25,
            "limit": 0.1,
            "holds": True,
        },
    ],
}


def records(line: Line) -> list[Record]:
    return [line.trail.read(number) for number in line.trail.numbers()]


def rows(line: Line) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(records(line)))))


def test_one_row_a_record(line: Line) -> None:
    found = rows(line)
    assert list(found[0]) == list(COLUMNS)
    assert [row["number"] for row in found] == [str(number) for number in range(1, len(records(line)) + 1)]
    assert [row["digest"] for row in found[:-1]] == [row["previous"] for row in found[1:]]
    assert {row["what"] for row in found} == {"registered", "decided", "removed"}


def test_a_move(line: Line) -> None:
    line.decide(lines.ALIAS, 3, 0, seen=line.alias(lines.ALIAS).moved_by, why="worse", details={"gate": GATE}, who="me")
    row, ids = rows(line)[-1], {number: line.versions.manifest(number).id for number in (0, 2)}
    assert (row["who"], row["what"], row["version"], row["why"]) == ("me", "decided", "3", "worse")
    assert (row["alias"], row["before"], row["after"]) == (lines.ALIAS, "2", "0")
    assert (row["version_digest_before"], row["version_digest_after"]) == (ids[2], ids[0])
    assert row["decision"] == "promote"
    assert row["conditions"] == "policy mean against reference: 0.5, bound 0.25, limit 0.1"


def test_an_empty_trail() -> None:
    assert as_csv([]) == ",".join(COLUMNS) + "\n"
    assert json.loads(as_json([])) == []


def test_text_that_a_spreadsheet_would_run(line: Line) -> None:
    for why in ("=1+1", "@x", "-2", "+3", "\tx"):
        line.fence(1, why=why, who="=cmd()")
        assert (rows(line)[-1]["why"], rows(line)[-1]["who"]) == (f"'{why}", "'=cmd()")


def test_text_with_commas_quotes_and_lines(line: Line) -> None:
    why = 'it said "no",\nthen ä 日本'
    line.fence(1, why=why)
    assert rows(line)[-1]["why"] == why
    assert json.loads(as_json(records(line)))[-1]["why"] == why


def test_json_holds_everything(line: Line) -> None:
    for row, record in zip(json.loads(as_json(records(line))), records(line), strict=True):
        assert (row["number"], row["digest"], row["previous"]) == (record.number, record.digest, record.previous)
        assert (row["kind"], row["version"]) == (record.event.kind, record.event.version)
        assert row["state"] == record.state.as_dict()
        assert row["details"] == record.details
