"""What has to hold of a line whatever its processes did and wherever they were killed (not a test)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.errors import PipelineError
from pipeline.release.line import Line
from pipeline.release.state import State, after
from pipeline.release.trail import Record
from pipeline.release.verify import verify
from tests.unit.release import lines


def wrong_with(line: Line, said: list[dict[str, Any]], *, settled: bool) -> Iterator[str]:
    """What does not hold of a line, given what its processes said that they did.

    Args:
        settled: whether somebody has appended and registered since all of them ended.
    """
    yield from (one["error"] for one in said if "error" in one)
    yield from (f"verify: {finding}" for finding in verify(line).findings)
    numbers = line.trail.numbers()
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the numbers are {numbers}"
    records = {number: line.trail.read(number) for number in numbers}
    states = {0: State()}
    for number, record in records.items():
        states[number] = after(states[number - 1], record.event, number)
    if line.state() != states[len(numbers)]:
        yield "the state is not the fold of the events"
    for name, alias in line.state().aliases.items():
        try:
            line.versions.require(alias.version, full=True)
        except PipelineError as error:
            yield f"{name} points to a version that is not whole: {error}"
    for one in said:
        yield from _broken_promises(line, one, records, states)
    versions = line.versions.numbers()
    if versions != list(range(len(versions))):
        yield f"the versions are {versions}"
    if settled and len(versions) != line.state().versions:
        yield f"{len(versions)} versions, {line.state().versions} with a record"
    if settled and len(line.trail.names()[1]) != len(numbers):
        yield f"{len(numbers)} records have tables {line.trail.names()[1]}"


def _broken_promises(
    line: Line, one: dict[str, Any], records: dict[int, Record], states: dict[int, State]
) -> Iterator[str]:
    """What a process was told that it had done, and is not so."""
    if "record" in one:
        number, alias = one["record"], lines.ALIAS
        if number not in records or records[number].digest != one["digest"]:
            yield f"record {number} was appended and is not there: {one}"
            return
        before, now = states[number - 1].alias(alias), states[number].alias(alias)
        if one.get("expected", before.version) != before.version:
            yield f"moved from version {before.version}: {one}"
        if one.get("seen") not in (None, before.moved_by):
            yield f"moved though record {before.moved_by} had moved it: {one}"
        if one.get("target", now.version) != now.version:
            yield f"the roll-back ended at version {now.version}: {one}"
    if "manifest" in one and line.versions.manifest(one["version"]).digest != one["manifest"]:
        yield f"the manifest of version {one['version']} is another one"
    if "removed" in one and one["removed"] not in line.state().removed:
        yield f"version {one['removed']} was removed and is there"
