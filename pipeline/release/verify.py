"""Is a line what its trail says? Every record, every table of aliases, every version, every byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.digests import unseal
from pipeline.errors import RegistryError
from pipeline.release.line import Line
from pipeline.release.state import State, after
from pipeline.release.trail import FIRST, KEY_VARIABLE, Record, Trail, audit_key, number_of, parse, signed_with


@dataclass(frozen=True)
class Verified:
    """What was looked at and what is wrong with it."""

    findings: tuple[str, ...]
    """One sentence for each; none when everything is as it was written."""
    records: int
    versions: int
    head: str
    """Digest of the newest record: kept elsewhere, it shows later that nothing was cut off since."""
    signed: int
    """Records whose HMAC was checked."""
    unchecked: int
    """Records with an HMAC that could not be checked without the key."""


def verify(line: Line, *, head: str | None = None, files: bool = True) -> Verified:
    """Verify a line.

    Args:
        head: digest of a record (or how it begins) that has to be in the trail, noted when that was shorter.
        files: hash every byte of every version too; without it sizes are compared.
    """
    findings: list[str] = []
    records = list(_chain(line.trail, findings))
    findings += _tables(line.trail, records)
    findings += _versions(line, records, files)
    key = audit_key()
    signed = [record for record in records if record.mac is not None]
    findings += _macs(line.trail, records, key)
    if head is not None and not any(record.digest.startswith(head) for record in records):
        findings.append(f"no record has the digest {head}: the trail was cut, or written anew, since that was noted")
    return Verified(
        tuple(findings),
        records=len(records),
        versions=len(line.versions.numbers()),
        head=records[-1].digest if records else FIRST,
        signed=0 if key is None else len(signed),
        unchecked=len(signed) if key is None else 0,
    )


def _chain(trail: Trail, findings: list[str]) -> Iterator[Record]:
    """The records that can be read, with what is wrong with them and their order."""
    names, _ = trail.names()
    numbers = [number for name in names if (number := number_of(name)) is not None]
    findings += [f"audit/{name} does not belong to the trail" for name in names if number_of(name) is None]
    state, before = State(), FIRST
    whole = True
    """Whether everything up to here could be read, so that the state is known."""
    for number in range(1, max(numbers, default=0) + 1):
        try:
            record = parse(trail.record_bytes(number))
        except FileNotFoundError:
            findings.append(f"record {number} is missing")
            before, whole = "", False
            continue
        except ValueError as error:
            findings.append(f"record {number} was changed: {error}")
            before, whole = "", False
            continue
        if record.number != number:
            findings.append(f"record {number} says that it is number {record.number}: the order was changed")
        if before and record.previous != before:
            findings.append(f"record {number} does not follow record {number - 1}: one of them was changed")
        if whole:
            try:
                expected = after(state, record.event, number)
            except RegistryError as error:
                findings.append(f"record {number} cannot have happened: {error}")
            else:
                if expected != record.state:
                    findings.append(f"record {number} says another state than follows from its event")
        state, before, whole = record.state, record.digest, True
        yield record


def _tables(trail: Trail, records: list[Record]) -> Iterator[str]:
    _, names = trail.names()
    known = {record.number: record for record in records}
    numbers = {number for name in names if (number := number_of(name)) is not None}
    yield from (f"aliases/{name} does not belong to the trail" for name in names if number_of(name) is None)
    newest = max(known, default=0)
    for number in sorted(numbers | set(known)):
        if number not in numbers:
            if number != newest:  # that one's writer may have been killed before it came to it
                yield f"the aliases of record {number} are missing"
            continue
        if number > newest:
            yield f"record {number} is missing at the end: its aliases are there"
            continue
        try:
            found = unseal(trail.table_bytes(number))
        except ValueError as error:
            yield f"the aliases of record {number} were changed: {error}"
            continue
        if number in known:
            try:
                expected = trail.table(known[number])
            except RegistryError:
                continue  # a record that it names is missing or damaged, and has been told of
            if found != expected:
                yield f"the aliases of record {number} are not those that follow from it"


def _versions(line: Line, records: list[Record], files: bool) -> Iterator[str]:
    manifests = {
        record.event.version: str(record.details.get("manifest"))
        for record in records
        if record.event.kind == "registered"
    }
    removed = records[-1].state.removed if records else frozenset()
    numbers = line.versions.numbers()
    for name in line.versions.names():
        if number_of(name) is None:
            yield f"versions/{name} does not belong to the registry"
    for number in sorted({*numbers, *(one for one in manifests if one is not None)}):
        if number not in numbers:
            yield f"the manifest of version {number} is missing"
            continue
        try:
            manifest = line.versions.manifest(number)
        except RegistryError as error:
            yield str(error)
            continue
        if number not in manifests:
            if number < max((one for one in manifests if one is not None), default=-1):
                yield f"version {number} has no record"
            continue
        if manifest.digest != manifests[number]:
            yield f"the manifest of version {number} is not the one that was registered"
        if number not in removed:
            place = line.versions.directory(manifest)
            yield from (f"version {number}: {what}" for what in line.versions.damage(place, manifest.files, full=files))
            yield from (f"version {number}: {name} does not belong to it" for name in line.versions.strangers(manifest))


def _macs(trail: Trail, records: list[Record], key: bytes | None) -> Iterator[str]:
    """With the key every record from the first signed one on has to carry the right HMAC."""
    if key is None:
        return
    first = next((record.number for record in records if record.mac is not None), None)
    if first is None and records:
        yield f"no record is signed, though {KEY_VARIABLE} is set"
    for record in records:
        if record.mac is None:
            if first is not None and record.number > first:
                yield f"record {record.number} is not signed, though earlier ones are"
        elif not signed_with(trail.record_bytes(record.number), record.mac, key):
            yield f"record {record.number} is not signed with this key"
