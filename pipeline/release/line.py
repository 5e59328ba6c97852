"""One line: the versions of one reference, where its aliases point, and every change of either."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.refusals import explained
from pipeline.release import state as states
from pipeline.release.manifest import (
    Manifest,
    check_model_directory,
    describe_files,
    id_of,
    identity_of,
    manifest_bytes,
)
from pipeline.release.state import CANDIDATE, PRODUCTION, REFERENCE, AliasState, Event, State
from pipeline.release.trail import Record, Trail
from pipeline.release.versions import Versions


@dataclass(frozen=True)
class Fetched:
    """A version whose every byte was just verified."""

    version: int
    label: str
    """Such as ``version 3 (production)``."""
    id: str
    path: Path
    """A local Hugging Face model directory."""


@dataclass(frozen=True)
class Moved:
    """What a move did."""

    before: int
    after: int
    record: Record | None
    """None when the alias was there already."""


def myself() -> str:
    """Who acts: user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class Line:
    """Versions, aliases and trail of one reference.

    Args:
        root: of the registry.
        name: of the line.
    """

    def __init__(self, root: Place, name: str) -> None:
        self.name = name
        self.place = root.below(name)
        self.versions, self.trail = Versions(self.place), Trail(self.place)

    # -- looking -------------------------------------------------------------------------------------------

    def state(self) -> State:
        """What the line stands at: one listing and the newest record."""
        head = self.trail.head()
        return State() if head is None else head.state

    def alias(self, name: str) -> AliasState:
        """Where an alias points."""
        return self.state().alias(name)

    def number(self, spec: str, state: State | None = None) -> int:
        """The version that a number, ``reference`` or an alias names.

        Raises:
            RegistryError: when there is no such version.
        """
        state = self.state() if state is None else state
        if spec == REFERENCE:
            return 0
        if spec.isdecimal():
            if not int(spec) < state.versions:
                have = f"versions 0 to {state.versions - 1}" if state.versions else "no version"
                raise RegistryError(f"there is no version {spec} in {self.place.root}, which has {have}")
            return int(spec)
        if spec not in state.aliases and spec not in (PRODUCTION, CANDIDATE):
            known = ", ".join(sorted({*state.aliases, PRODUCTION, CANDIDATE, REFERENCE}))
            raise RegistryError(
                f"there is no version or alias {spec!r} in {self.place.root}; there are {known}, and numbers"
            )
        return state.alias(spec).version

    def label(self, version: int, state: State) -> str:
        """A version with the names it has."""
        names = [*(["the reference"] if version == 0 else [])]
        names += [name for name, alias in sorted(state.aliases.items()) if alias.version == version]
        return f"version {version}" + (f" ({', '.join(names)})" if names else "")

    def fetch(self, spec: str, into: Path) -> Fetched:
        """A version to load, every byte verified.

        Args:
            spec: number, alias or ``reference``.
            into: where copies go when the registry is on an object store.

        Raises:
            RegistryError: when there is none, or a file differs.
        """
        state = self.state()
        version = self.number(spec, state)
        if version in state.removed:
            raise RegistryError(f"version {version} was removed from {self.place.root}; choose another one")
        manifest = self._registered(version, state)
        with explained(f"copies of versions cannot be written to {into}", within=into):
            return Fetched(version, self.label(version, state), manifest.id, self.versions.fetch(manifest, into))

    def find(self, identity: str) -> Manifest | None:
        """The version with these contents, if there is one that was not removed."""
        removed = self.state().removed
        for number in reversed(self.versions.numbers()):
            if number not in removed and (manifest := self.versions.manifest(number)).identity == identity:
                return manifest
        return None

    # -- versions ------------------------------------------------------------------------------------------

    def register(self, directory: Path, provenance: Mapping[str, Any], *, why: str, who: str | None = None) -> Manifest:
        """Make a version of a model directory, or find the one with the same contents (and make its files whole).

        Args:
            directory: a Hugging Face model directory with what else belongs to the version; links are followed.
            provenance: digests of what it was made from, as JSON.

        Raises:
            ModelError: for a directory that no server could load, or that holds programs.
            RegistryError: when it could not be written whole.
        """
        check_model_directory(directory)
        files = describe_files(directory)
        identity = identity_of(files)
        when, written = datetime.now(UTC).isoformat(timespec="milliseconds"), ""
        while True:
            # Seen before anything else: a number that is free after that shows that nobody was faster.
            number = max(self.versions.numbers(), default=-1) + 1
            if found := self.find(identity):
                self.versions.repair(found, directory)
                break
            id = id_of(files, {self.versions.manifest(one).id for one in self.state().removed})
            if id != written:
                self.versions.put(directory, id, files)
                written = id
            data = manifest_bytes(number, id, files, provenance, when, who or myself(), why)
            if self.versions.create(number, data):
                found = self.versions.manifest(number)
                break
        self.record_versions()
        return found

    def record_versions(self) -> None:
        """Append the record of every version that has none: the newest one's, and those whose writers were killed."""
        known = self.state().versions
        for number in self.versions.numbers():
            if number < known:
                continue
            manifest = self.versions.manifest(number)

            def registered(state: State, number: int = number) -> Event | None:
                return Event("registered", number) if state.versions == number else None

            details = {"id": manifest.id, "identity": manifest.identity, "manifest": manifest.digest}
            self.trail.append(registered, who=manifest.who, why=manifest.why, details=details)

    def remove(self, spec: str, *, why: str, who: str | None = None) -> int:
        """Give up a version's files, for their space. Its manifest and its records stay.

        Raises:
            RegistryError: for the reference, and for what an alias points to.
        """
        version = self.number(spec)
        self.trail.append(
            lambda state: None if version in state.removed else Event("removed", version),
            who=who or myself(),
            why=why,
        )
        self.versions.remove_files(self.versions.manifest(version))
        return version

    # -- aliases -------------------------------------------------------------------------------------------

    def promote(
        self,
        alias: str,
        version: int,
        *,
        expected: int,
        why: str,
        seen: int | None = None,
        fence: int | None = None,
        who: str | None = None,
    ) -> Moved:
        """Move an alias to a version: one atomic compare-and-swap.

        Args:
            expected: the version that the alias has to point to.
            seen: number of the record that moved it there (`AliasState.moved_by`), to notice that it went elsewhere
                and came back.
            fence: the token (`pipeline.lease.Lease.number`) under which this was decided.

        Raises:
            ConflictError: when the alias points elsewhere or the lease was taken over; nothing was changed.
            RegistryError: when there is no such version, or its files are not whole; nothing was changed.
        """
        states.check_alias(alias)
        self._require_there(version)
        record = self.trail.append(
            lambda state: states.promotion(state, alias, version, expected, seen, fence), who=who or myself(), why=why
        )
        return Moved(expected, version, record)

    def roll_back(self, alias: str, to: str | None = None, *, why: str, who: str | None = None) -> Moved:
        """Move an alias back: to what it pointed to before, or to a version.

        What it goes to is settled when the call begins. A promotion at the same moment is undone with it, or is refused
        when it comes later, since the alias is not where it expects it.

        Args:
            to: a number, ``reference``, an alias, or None for the previous version. None again after a roll-back does
                nothing.

        Raises:
            RegistryError: when there is no such version, nothing to go back to, or its files are not whole.
        """
        states.check_alias(alias)
        state = self.state()
        wanted = None if to is None else self.number(to, state)
        target = states.roll_back_target(state, alias, wanted)
        if state.alias(alias).version != target:
            self._require_there(target)
        record = self.trail.append(lambda now: states.roll_back(now, alias, target), who=who or myself(), why=why)
        return Moved(target if record is None else record.event.moves[0].before, target, record)

    def decide(
        self,
        alias: str,
        version: int,
        goes_to: int | None,
        *,
        seen: int,
        why: str,
        details: Mapping[str, Any],
        fence: int | None = None,
        who: str | None = None,
    ) -> Record:
        """Write down what the gate decided of a version, and move the alias with it, in one record.

        Args:
            goes_to: where the alias goes: the version, 0, or None to leave it.
            seen: number of the record that had moved the alias when the decision was made.
            details: the decision and its numbers, as JSON.

        Raises:
            ConflictError: when the alias has moved since, or the lease was taken over; nothing was changed.
        """
        states.check_alias(alias)
        for one in {version, version if goes_to is None else goes_to}:
            self._require_there(one)
        record = self.trail.append(
            lambda state: states.decision(state, alias, version, goes_to, seen, fence),
            who=who or myself(),
            why=why,
            details=details,
        )
        assert record is not None, "a decision is always written down"
        return record

    def fence(self, token: int, *, why: str, who: str | None = None) -> Record:
        """Keep out whoever holds an older lease, before anything is decided under the new one.

        Raises:
            ConflictError: when a newer one has been here.
        """
        event = Event("fenced", None, (), token)
        record = self.trail.append(lambda state: event, who=who or myself(), why=why)
        assert record is not None
        return record

    def _require_there(self, version: int) -> None:
        """Before an alias moves: the manifest and the size of every file, which is done at once for any model."""
        self.versions.require(version, full=False)
        self._registered(version, self.state())

    def _registered(self, version: int, state: State) -> Manifest:
        """The manifest of a version, which has to be the one that its record names.

        Raises:
            RegistryError: when there is none, or it is another one.
        """
        manifest = self.versions.manifest(version)
        if version >= state.versions:
            raise RegistryError(
                f"there is no version {version} in {self.place.root} with a record: its writer was interrupted, and "
                "the next registration completes it"
            )
        record = self.trail.read(state.registered_by[version])
        if record.details.get("manifest") != manifest.digest:
            raise RegistryError(
                f"the manifest of version {version} in {self.place.root} is not the one that was registered: restore "
                "it from a copy"
            )
        return manifest
