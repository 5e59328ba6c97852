"""What every call of the schedule left: numbered documents that are created once and never written again.

::

    00000007.json        begun (or skipped): when, who, which call, under which fencing token and policy
    00000007-end.json    what was found, decided and done, or that it was interrupted, which the next call writes
    00000007-late.json   what a holder whose lease had been taken over still had to say

``now`` is the time that a call acted at (``--now``), ``when`` that of the clock. All is sealed JSON.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.realign.rows import EMPTY

State = Literal["begun", "skipped"]
INTERRUPTED = "interrupted"
FAILED = "failed"

_NAME = re.compile(r"(\d{8})(-end|-late)?\.json")


@dataclass(frozen=True)
class Held:
    """A batch that is kept for a person."""

    digest: str
    """Of its pairs' contents (`pipeline.realign.rows`)."""
    pairs: int
    since: str
    why: str


@dataclass(frozen=True)
class Memory:
    """What the next call has to know, as the last one that came to its end left it."""

    production: int = 0
    """The version in production then."""
    known: str = EMPTY
    """Pairs that the last alignment saw, in any split (names of sets in `pipeline.realign.rows`)."""
    cleared: str = EMPTY
    """Pairs that production was measured on, or that a person accepted, and that wait for a re-alignment."""
    waiting: tuple[str, ...] = ()
    """Pairs that it was not measured on yet: one set for each call that found new ones."""
    held: tuple[Held, ...] = ()
    alerts: tuple[str, ...] = ()
    """Digests of the alerts that were seen."""
    evaluated_version: int | None = None
    evaluated_at: str | None = None
    aligned_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lists = {name: list(getattr(self, name)) for name in ("waiting", "alerts")}
        return asdict(self) | lists | {"held": [asdict(one) for one in self.held]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Memory:
        """What `as_dict` gave."""
        held = tuple(Held(**one) for one in value["held"])
        lists = {name: tuple(value[name]) for name in ("waiting", "alerts")}
        return cls(**{**value, **lists, "held": held})


@dataclass(frozen=True)
class Entry:
    """One call."""

    number: int
    first: Mapping[str, Any]
    end: Mapping[str, Any] | None = None
    late: Mapping[str, Any] | None = None

    @property
    def outcome(self) -> str:
        """How it ended, in a word or two; ``running`` while it has not."""
        if self.first["state"] == "skipped":
            return "skipped"
        return "running" if self.end is None else str(self.end["outcome"])


@dataclass
class Records:
    """The documents of one line.

    Args:
        place: nothing else lies there, and nothing is created before the first record.
    """

    place: Place
    _read: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def entries(self) -> list[Entry]:
        """Every call, oldest first.

        Raises:
            ArtifactError: when a document is gone, or a byte of it was changed.
        """
        return [self._entry(number, endings) for number, endings in sorted(self._numbers().items())]

    def open_entries(self) -> list[Entry]:
        """Calls that were begun and have no end."""
        missing = [number for number, endings in sorted(self._numbers().items()) if "-end" not in endings]
        return [one for number in missing if (one := self._entry(number, {""})).first["state"] == "begun"]

    def unremembered(self) -> list[Entry]:
        """Calls after the newest that left a memory, newest first."""
        found = []
        for number, endings in sorted(self._numbers().items(), reverse=True):
            entry = self._entry(number, endings)
            if entry.end is not None and entry.end["memory"] is not None:
                break
            found.append(entry)
        return found

    def memory(self) -> Memory:
        """What the newest call that knew it has left."""
        for number, endings in sorted(self._numbers().items(), reverse=True):
            if "-end" in endings and (found := self._document(f"{number:08d}-end.json")).get("memory") is not None:
                return Memory.from_dict(found["memory"])
        return Memory()

    def recipe(self) -> str | None:
        """The recipe of the newest call; None when there was none."""
        newest = max(self._numbers(), default=None)
        return None if newest is None else str(self._entry(newest, set()).first["recipe"])

    def begin(self, state: State, content: Mapping[str, Any]) -> int:
        """The first document of a call; returns its number."""
        call = uuid.uuid4().hex
        while True:
            number = max(self._numbers(), default=0) + 1
            value = {"number": number, "state": state, "call": call, "when": clock(), **content}
            if self._create(f"{number:08d}.json", seal(value)):
                return number

    def end(self, number: int, content: Mapping[str, Any]) -> bool:
        """The second document; false when there was one already, since somebody took the call for interrupted."""
        return self._create(f"{number:08d}-end.json", seal({"number": number, "when": clock(), **content}))

    def late(self, number: int, content: Mapping[str, Any]) -> None:
        """What is left to say of a call that was taken for interrupted."""
        self.place.create(f"{number:08d}-late.json", seal({"number": number, "when": clock(), **content}))

    def _create(self, name: str, data: bytes) -> bool:
        """Whether the document is there and is this one: a store that is asked again, since its first answer was lost,
        says that somebody else was faster."""
        return self.place.create(name, data) or self.place.read(name) == data

    def _numbers(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for name in self.place.names():
            if parts := _NAME.fullmatch(name):
                found.setdefault(int(parts[1]), set()).add(parts[2] or "")
        return found

    def _entry(self, number: int, endings: set[str]) -> Entry:
        first = self._document(f"{number:08d}.json")
        end, late = (
            self._document(f"{number:08d}{ending}.json") if ending in endings else None for ending in ("-end", "-late")
        )
        return Entry(number, first, end, late)

    def _document(self, name: str) -> Mapping[str, Any]:
        if name not in self._read:
            try:
                self._read[name] = unseal(self.place.read(name))
            except FileNotFoundError as error:
                raise self._damaged(name, "is gone") from error
            except ValueError as error:
                raise self._damaged(name, "was changed") from error
        return self._read[name]

    def _damaged(self, name: str, what: str) -> ArtifactError:
        return ArtifactError(f"the record {self.place.root}/{name} of a re-alignment {what}: restore it from a copy")


def clock() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
