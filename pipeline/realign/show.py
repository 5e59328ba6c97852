"""What calls did as a timeline, and what a call would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.cli import JobRequest
from pipeline.console import Console, duration
from pipeline.realign.records import Entry

if TYPE_CHECKING:
    from pipeline.realign.job import FoundLine
    from pipeline.storage import Storage


def timeline(line: str, entries: Sequence[Entry]) -> list[str]:
    """A line for each call, and below it what it decided, with reasons."""
    if not entries:
        return [f"line {line}: no call of jobs/realign.py has left a record yet"]
    return [
        f"line {line}, {len(entries)} {'call' if len(entries) == 1 else 'calls'}, oldest first",
        *(text for one in entries for text in _told(one)),
    ]


def _told(entry: Entry) -> Iterator[str]:
    end = entry.end or {}
    took = f"  {duration(end['seconds'])}" if "seconds" in end else ""
    audit = f"  audit {', '.join(map(str, end['audit']))}" if end.get("audit") else ""
    yield f"{entry.number:4d}  {str(entry.first['now'])[:16].replace('T', ' ')}  {entry.outcome}{took}{audit}"
    release = end.get("release")
    if release is not None:
        where = release["before"] if release["after"] is None else release["after"]
        moved = "" if release["after"] is None else f", production: version {release['before']} -> {where}"
        yield f"        version {release['version']}: {str(release['outcome']).replace('_', ' ')}{moved}"
    for sentence in end.get("said", ()):
        yield f"        {sentence}"
    if end.get("error"):
        yield f"        {end['error']}"
    if entry.late is not None:
        yield f"        overtaken: {entry.late['outcome']}"


def preview(request: JobRequest, storage: Storage, found: FoundLine, now: datetime, console: Console) -> None:
    """Say what a call would find and decide now; nothing is changed, and nothing is measured."""
    from pipeline.realign.job import DIRECTORY
    from pipeline.realign.look import look
    from pipeline.realign.policy import decide, wants_measure
    from pipeline.realign.rows import RowSets

    if found.line is None or found.first:
        console.line(f"line {found.name} has no alignment yet: the first one would be made (jobs/align.py --dry-run)")
        return
    memory = found.records(storage).memory()
    sets = RowSets(storage.place(DIRECTORY, found.name, "rows"), dry=True)
    seen = look(request.run, storage, found.line, memory, sets, now, accept=request.arguments["accept"])
    policy = request.run.realign
    console.line(
        f"line {found.name}, version {seen.facts.production} in production, {len(seen.pairs):,} pairs in the data, "
        f"{seen.facts.new:,} of them new, {len(seen.held_rows & seen.pairs.keys()):,} held"
    )
    for sentence in seen.said:
        console.line(sentence)
    if wants_measure(seen.facts, policy):
        console.line(
            f"would first measure the accuracy of version {seen.facts.production} on {seen.facts.unmeasured:,} new "
            "pairs, which may hold them or ask for a re-alignment"
        )
    decision = decide(seen.facts, policy)
    for what, reasons in (("evaluate production", decision.evaluate), ("align anew", decision.realign)):
        if reasons:
            console.line(f"would {what}: {'; '.join(reasons)}")
    for sentence in decision.notes:
        console.line(sentence)
    if decision.nothing:
        console.line("would do nothing else" if wants_measure(seen.facts, policy) else "would do nothing")
