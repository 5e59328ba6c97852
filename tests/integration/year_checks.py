"""What has to hold of a year of calls, computed from the audit trail, the records and the artefacts.

Not a test: a part of the simulated year.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import job
from year_data import swapped

from pipeline.data.formats import content_id
from pipeline.data.prepare import content_of
from pipeline.data.tables import read_table
from pipeline.realign.records import Entry, Records
from pipeline.records import SPLITS, PairRow
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.storage import open_storage
from pipeline.watch.alerts import read_alerts


@dataclass
class Happened:
    """What was done to the schedule."""

    calls: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)
    """Rows of the swapped batch, as they stood in the data."""
    aligned_weeks: list[int] = field(default_factory=list)
    ray_weeks: list[int] = field(default_factory=list)
    kills: list[tuple[int, str, str]] = field(default_factory=list)
    """Week, stage, and the last line that was said."""
    overlaps: list[tuple[int, tuple[str, str], bool]] = field(default_factory=list)
    """Week, who called first and second, and whether the second left it to the first."""
    faults: list[str] = field(default_factory=list)


@dataclass
class History:
    """All that is left of a year."""

    storage: Path
    line: Line
    entries: list[Entry]
    happened: Happened

    @property
    def moves(self) -> list[tuple[int, int]]:
        """Every move of production: record and version."""
        records = [self.line.trail.read(number) for number in self.line.trail.numbers()]
        return [(one.number, move.after) for one in records for move in one.event.moves if move.alias == "production"]

    def data_of(self, version: int) -> set[str]:
        """Contents that a version was made from, by the artefact that its provenance names."""
        key = self.line.versions.manifest(version).provenance["stages"]["data"]
        path = open_storage(str(self.storage)).store(create=False).open("data", key).path
        return {content_of(pair) for split in SPLITS for pair in read_table(path / f"{split}.parquet", PairRow)}


def contents(rows: list[dict[str, str]]) -> set[str]:
    """Ids of rows' contents."""
    return {content_id(row["prompt"], row["chosen"], row["rejected"]) for row in rows}


def check(storage: Path, happened: Happened) -> list[str]:
    """Print every check; returns those that do not hold."""
    line = open_registry(str(storage / "registry")).line()
    entries = Records(open_storage(str(storage)).place("realign", line.name, "records")).entries()
    history, wrong = History(storage, line, entries, happened), []
    for name, holds in CHECKS.items():
        fault = holds(history)
        print(f"{'holds' if fault is None else 'FAILS'}  {name}" + ("" if fault is None else f": {fault}"), flush=True)
        wrong += [] if fault is None else [name]
    return wrong


def _calls_went_well(of: History) -> str | None:
    return "; ".join(of.happened.faults) or None


def _trail(of: History) -> str | None:
    code, output = job.run(["verify", "--storage", str(of.storage)], script="registry.py")
    return None if code == 0 and "nothing was changed" in output else output


def _records(of: History) -> str | None:
    outcomes = Counter(entry.outcome for entry in of.entries)
    if len(of.entries) != of.happened.calls:
        return f"{of.happened.calls} calls, {len(of.entries)} records"
    if outcomes["running"] or outcomes["failed"] or any(entry.late for entry in of.entries):
        return str(outcomes)
    if outcomes["interrupted"] != len(of.happened.kills):
        return f"{len(of.happened.kills)} calls were killed, {outcomes['interrupted']} records say so"
    return None


def _alignments(of: History) -> str | None:
    """Distinct trainings that took steps, each behind one record that says re-aligned."""
    ends = [entry.end for entry in of.entries if entry.end and entry.end.get("release")]
    keys = [end["artifacts"]["align"] for end in ends if end["outcome"].endswith(("first alignment", "re-aligned"))]
    store = open_storage(str(of.storage)).store(create=False)
    steps = [json.loads((store.open("align", key).path / "training.json").read_text())["steps"] for key in set(keys)]
    if len(keys) != len(set(keys)) or min(steps) < 1:
        return f"keys {keys}, steps {steps}"
    if len(store.list("align")) != len(keys):
        return f"{len(store.list('align'))} trainings, of which {len(keys)} stand in records"
    return None if len(keys) >= 7 else f"only {len(keys)}"


def _decided_once(of: History) -> str | None:
    records = [of.line.trail.read(number) for number in of.line.trail.numbers()]
    runs = Counter(one.details["run"] for one in records if one.event.kind == "decided")
    return None if max(runs.values()) == 1 else str(runs)


def _tokens(of: History) -> str | None:
    """Tokens rise from holder to holder, and every decision carries that of a call which is in the records."""
    tokens = [entry.first["fence"] for entry in of.entries if entry.first["state"] == "begun"]
    records = [of.line.trail.read(number) for number in of.line.trail.numbers()]
    decided = [one.event.fence for one in records if one.event.kind == "decided"]
    if tokens != sorted(set(tokens)) or not set(decided) <= set(tokens):
        return f"tokens {tokens}, decisions under {decided}"
    known = {number for entry in of.entries if entry.end for number in entry.end.get("audit", ())}
    lost = {one.number for one in records if one.event.kind == "decided"} - known
    return f"audit records {sorted(lost)} are in no record" if lost else None


def _production(of: History) -> str | None:
    """Every version that came into production did so by a decision whose limits all hold, and none saw a swapped pair,
    neither there nor elsewhere."""
    bad = contents(of.happened.bad)
    for version in range(1, of.line.state().versions):
        if seen := bad & of.data_of(version):
            return f"version {version} has seen {len(seen)} swapped pairs"
    for number, version in of.moves:
        gate = of.line.trail.read(number).details["gate"]
        if version == 0 and gate["outcome"] == "roll_back":
            continue
        mine = [one for one in gate["conditions"] if one["of"] == "candidate"]
        if gate["outcome"] != "promote" or not mine or not all(one["holds"] for one in mine):
            return f"record {number} moved production to version {version} by {gate['outcome']}"
    return None if len(of.moves) >= 2 and bad else f"{len(of.moves)} moves"


def _held(of: History) -> str | None:
    held = [entry for entry in of.entries if f"held {len(of.happened.bad)} pairs" in entry.outcome]
    if len(held) != 1 or held[0].end is None:
        return f"{len(held)} records hold the batch"
    gone = [
        one
        for one in of.entries
        if one.end and any("is gone from the data" in text for text in one.end.get("said", ()))
    ]
    if len(gone) != 1:
        return f"{len(gone)} records say that it was repaired"
    missing = contents([swapped(row) for row in of.happened.bad]) - of.data_of(of.line.state().versions - 1)
    return f"{len(missing)} repaired pairs are not in the newest version" if missing else None


def _alert(of: History) -> str | None:
    alerts = read_alerts(open_storage(str(of.storage)), of.line.name)
    if not alerts:
        return "the watch raised none"
    answers = [
        one
        for one in of.entries
        if one.end and any("alert(s) of the watch on version" in text for text in one.end.get("said", ()))
    ]
    if len(answers) != 1:
        return f"{len(alerts)} alert(s), {len(answers)} records that answer"
    outcome = answers[0].outcome
    return None if outcome.endswith(("evaluated", "re-aligned", "rolled back to the reference")) else outcome


def _quiet(of: History) -> str | None:
    """Calls that found nothing to do started no Ray, and there were such."""
    quiet = [entry for entry in of.entries if entry.outcome == "nothing to do"]
    worked = [entry for entry in of.entries if entry.outcome not in ("nothing to do", "skipped", "interrupted")]
    if len(of.happened.ray_weeks) > len(worked):
        return f"Ray in {len(of.happened.ray_weeks)} weeks, work in {len(worked)}"
    return None if len(quiet) >= 26 else f"only {len(quiet)} quiet weeks"


def _overlaps(of: History) -> str | None:
    skipped = sum(entry.outcome == "skipped" for entry in of.entries)
    left = [left for _, _, left in of.happened.overlaps]
    orders = {order for _, order, _ in of.happened.overlaps}
    return None if left == [True, True] and skipped == 2 and len(orders) == 2 else f"{of.happened.overlaps}, {skipped}"


def _kills(of: History) -> str | None:
    stages = [stage for _, stage, _ in of.happened.kills]
    weeks = [week for week, _, _ in of.happened.kills]
    lost = [week for week in weeks if week not in of.happened.aligned_weeks]
    return (
        None
        if stages == ["reference", "align", "register"] and not lost
        else f"{of.happened.kills}; not made up for: weeks {lost}"
    )


CHECKS: dict[str, Callable[[History], str | None]] = {
    "every call that was not killed ended with exit code 0": _calls_went_well,
    "the audit trail and every byte of every version verify": _trail,
    "no record is lost: one for every call, interrupted where it was killed": _records,
    "at least seven alignments trained, none of them twice": _alignments,
    "nothing was decided twice": _decided_once,
    "tokens rise, and every decision is that of a recorded call": _tokens,
    "no bad version in production: all its limits held, and no version saw a swapped pair": _production,
    "the swapped batch was held once, and used when it was repaired": _held,
    "the watch's alert was answered by the next call": _alert,
    "quiet weeks started no Ray": _quiet,
    "of two schedules one did the work, in both orders": _overlaps,
    "three kills, each made up for in its week": _kills,
}
