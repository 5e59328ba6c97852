"""The audit trail: records that are only ever appended, each naming the digest of the one before.

A line's directory holds ``audit/00000001.json``, ``00000002.json`` ... and tables of the same names in ``aliases/``:
where every alias points after a record, with the digest of the record that moved it and that of the newest one. Both
are created exclusively and never written again. The record is what counts: creating it *is* the compare-and-swap,
since exactly one process can create a number and it has seen all the numbers below. The table of aliases follows, by
whoever appends next if its writer was killed in between. A record that is missing at the end is found by its table,
one that is missing elsewhere by its successor's digest. (Who removes record and table together leaves a shorter trail
that is whole: keep the newest digest elsewhere too, in a report or a log, and give it to ``jobs/registry.py
verify``.)

With a key (environment variable ``RA_DPO_AUDIT_KEY``) every record also carries an HMAC-SHA256, so that somebody who
may write the files but does not know the key cannot write the whole trail anew.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.digests import seal, unseal
from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.release.state import Event, State, after

FIRST = "0" * 64
"""What the first record names as the one before."""

KEY_VARIABLE = "RA_DPO_AUDIT_KEY"

_KINDS = {"number": int, "previous": str, "when": str, "who": str, "why": str, "details": dict, "mac": str | None}

Propose = Callable[[State], "Event | None"]
"""From the state to what shall happen in it, or None for nothing; raises what forbids it."""


@dataclass(frozen=True)
class Record:
    """One event with who, when and why, and what the line stands at after it."""

    number: int
    previous: str
    """sha256 of the file of the record before, `FIRST` in the first."""
    when: str
    """UTC, ISO 8601."""
    who: str
    why: str
    event: Event
    details: Mapping[str, Any]
    """Numbers behind it: digests of the version, the gate's conditions."""
    state: State
    mac: str | None
    digest: str
    """sha256 (hex) of the record's file."""


def name_of(number: int) -> str:
    """The file of a record and of its table."""
    return f"{number:08d}.json"


def number_of(name: str) -> int | None:
    """The number in a file's name; None for a file that is none of the trail's."""
    stem = name.removesuffix(".json")
    return int(stem) if stem.isdecimal() and name_of(int(stem)) == name else None


def audit_key() -> bytes | None:
    """The key of the trail, if there is one in the environment."""
    value = os.environ.get(KEY_VARIABLE, "")
    return value.encode() or None


def parse(data: bytes) -> Record:
    """A record from its file.

    Raises:
        ValueError: when a byte of it was changed, or it is no record.
    """
    value = unseal(data)
    if wrong := [name for name, kind in _KINDS.items() if name not in value or not isinstance(value[name], kind)]:
        raise ValueError(f"it is no record ({', '.join(wrong)})")
    try:
        return Record(
            number=value["number"],
            previous=value["previous"],
            when=value["when"],
            who=value["who"],
            why=value["why"],
            event=Event.from_dict(value["event"]),
            details=value["details"],
            state=State.from_dict(value["state"]),
            mac=value["mac"],
            digest=hashlib.sha256(data).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no record ({error})") from error


def mac_of(value: Mapping[str, Any], key: bytes) -> str:
    """HMAC-SHA256 (hex) over a record without its mac."""
    return hmac.new(
        key, seal({name: one for name, one in value.items() if name not in ("mac", "seal")}), "sha256"
    ).hexdigest()


def signed_with(data: bytes, mac: str, key: bytes) -> bool:
    """Whether a record's file carries the HMAC of a key."""
    return hmac.compare_digest(mac, mac_of(unseal(data), key))


class Trail:
    """The records of one line.

    Args:
        place: the line's directory; nothing is created before the first record.
        key: for the HMAC of every record; None reads the environment (`KEY_VARIABLE`).
    """

    def __init__(self, place: Place, key: bytes | None = None) -> None:
        self._records, self._tables = place.below("audit"), place.below("aliases")
        self._where = place.root
        self._key = audit_key() if key is None else key

    # -- reading -------------------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Numbers of the records that are there, in order."""
        return _numbers(self._records)

    def head(self) -> Record | None:
        """The newest record; None in an empty trail. The chain behind it is not verified.

        Raises:
            RegistryError: when the end of the trail is missing, or its newest record is damaged.
        """
        # The tables first: what is appended in between may only add records.
        tables, numbers = _numbers(self._tables), self.numbers()
        newest = numbers[-1] if numbers else 0
        if tables and tables[-1] > newest:
            raise self._changed(f"record {tables[-1]} is missing, though the aliases were moved by it")
        for number in sorted({*range(1, newest)} - {*numbers}):
            # A long listing that is made while others append may leave one of theirs out: a record is there or not.
            if self._records.size(name_of(number)) is None:
                raise self._changed(f"record {number} is missing")
        if not newest:
            return None
        record = self.read(newest)
        if tables and tables[-1] == newest:
            self._check_table(record)
        self._check_signed(record)
        return record

    def goes_on(self, number: int) -> bool:
        """Whether a record follows this one, which takes no listing: two small requests for a trail of any length.

        Raises:
            RegistryError: when this one is not there any more.
        """
        if self._records.size(name_of(number)) is None:
            raise self._changed(f"record {number} is missing")
        try:
            self._records.read(name_of(number + 1))
        except FileNotFoundError:
            return False
        return True

    def _check_signed(self, newest: Record) -> None:
        """With the key: an unsigned record behind a signed one is none of this trail's writers'."""
        if self._key is None or newest.mac is not None:
            return
        if any(self.read(number).mac is not None for number in range(newest.number - 1, 0, -1)):
            raise self._changed(f"record {newest.number} is not signed, though earlier ones are")

    def read(self, number: int) -> Record:
        """One record.

        Raises:
            RegistryError: when it is missing or damaged.
        """
        try:
            data = self._records.read(name_of(number))
            record = parse(data)
        except FileNotFoundError as error:
            raise self._changed(f"record {number} is missing") from error
        except ValueError as error:
            raise self._changed(f"record {number} is damaged: {error}") from error
        if record.number != number:
            raise self._changed(f"record {number} says that it is number {record.number}")
        if self._key is not None and record.mac is not None and not signed_with(data, record.mac, self._key):
            raise self._changed(f"record {number} is not signed with the key in {KEY_VARIABLE}")
        return record

    def record_bytes(self, number: int) -> bytes:
        """The file of a record (FileNotFoundError without one)."""
        return self._records.read(name_of(number))

    def table_bytes(self, number: int) -> bytes:
        """The file of the aliases after a record (FileNotFoundError without one)."""
        return self._tables.read(name_of(number))

    def names(self) -> tuple[list[str], list[str]]:
        """Files of the two directories, also those that do not belong there."""
        return self._records.names(), self._tables.names()

    def _check_table(self, record: Record) -> None:
        try:
            table = unseal(self.table_bytes(record.number))
            same = table["head"] == record.digest
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise self._changed(f"the aliases of record {record.number} are damaged: {error}") from error
        if not same:
            raise self._changed(f"record {record.number} is not the one that the aliases name")

    def _changed(self, what: str) -> RegistryError:
        return RegistryError(
            f"the audit trail in {self._where} was changed: {what}; nothing is moved before it is restored from a copy "
            "(jobs/registry.py verify says all that is wrong)"
        )

    # -- appending -----------------------------------------------------------------------------------------

    def append(
        self, propose: Propose, *, who: str, why: str, details: Mapping[str, Any] | None = None
    ) -> Record | None:
        """Append what is proposed, seeing to it that nothing happens between the state it was proposed in and itself.

        Args:
            propose: called with the state, again whenever somebody else was faster.

        Returns:
            The record, or None when nothing was proposed.

        Raises:
            RegistryError: what ``propose`` raises; a damaged trail; a trail with a key that is not at hand.
        """
        while True:
            head = self.head()
            if head is not None:
                self._complete(head)
                if head.mac is not None and self._key is None:
                    raise RegistryError(
                        f"the audit trail in {self._where} is signed: set {KEY_VARIABLE} to its key, nothing is "
                        "written without it"
                    )
            state = State() if head is None else head.state
            event = propose(state)
            if event is None:
                return None
            data = self._data(head, event, after(state, event, _number(head) + 1), who, why, details or {})
            number = _number(head) + 1
            # A store may answer that the object is there to a request that it has been sent twice.
            if self._records.create(name_of(number), data) or self.record_bytes(number) == data:
                record = parse(data)
                self._complete(record)
                return record

    def _data(
        self, head: Record | None, event: Event, state: State, who: str, why: str, details: Mapping[str, Any]
    ) -> bytes:
        value = {
            "number": _number(head) + 1,
            "previous": FIRST if head is None else head.digest,
            "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "why": why,
            "event": event.as_dict(),
            "details": dict(details),
            "state": state.as_dict(),
            "nonce": uuid.uuid4().hex,  # two writers never make the same bytes, so that one knows which are its own
        }
        return seal({**value, "mac": None if self._key is None else mac_of(value, self._key)})

    def _complete(self, record: Record) -> None:
        """Write the table of the newest record, if its writer has not come to it. Those before are there: each was
        completed before its successor was created."""
        if self._tables.size(name_of(record.number)) is None:
            self._tables.create(name_of(record.number), seal(self.table(record)))

    def table(self, record: Record) -> dict[str, Any]:
        """Where every alias points after a record, and by which record."""
        digests = {record.number: record.digest}
        aliases = {}
        for name, alias in sorted(record.state.aliases.items()):
            if alias.moved_by not in digests:
                digests[alias.moved_by] = self.read(alias.moved_by).digest
            aliases[name] = {
                "version": alias.version,
                "moved_by": alias.moved_by,
                "record": digests[alias.moved_by],
            }
        return {"number": record.number, "head": record.digest, "aliases": aliases}


def _number(head: Record | None) -> int:
    return 0 if head is None else head.number


def _numbers(place: Place) -> list[int]:
    return sorted(number for name in place.names() if (number := number_of(name)) is not None)
