"""What a line of versions stands at, and which changes of it are allowed. Pure.

The audit trail is the only truth: every record is one event, and what a line stands at is the fold of its events
(`after`). Whoever appends the next record has seen all before it, so that a change which is checked against the state
and then appended to exactly this state is an atomic compare-and-swap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipeline.errors import ConflictError, RegistryError

Kind = Literal["registered", "decided", "promoted", "rolled back", "removed", "fenced"]
"""registered: a version came to be; decided: the gate judged one, and may have moved aliases; promoted, rolled back: a
person, or a watch, moved an alias; removed: a version's files were given up; fenced: an older holder of a lease is kept
out from now on."""

REFERENCE = "reference"
"""Another name of version 0, no alias: it cannot be moved."""
CANDIDATE = "candidate"
"""The alias of what the gate judged last."""
PRODUCTION = "production"
"""The alias that there is from the beginning, where nobody names another: it begins at the reference."""

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,30}")


@dataclass(frozen=True)
class AliasState:
    """Where an alias points."""

    version: int = 0
    """An alias that was never moved points to the reference."""
    moved_by: int = 0
    """Number of the record that moved it; 0 before the first."""
    fallback: tuple[int, ...] = ()
    """What it pointed to before, newest last: the way back of a roll-back."""
    rolled_back: bool = False
    """Whether the last move was a roll-back."""


@dataclass(frozen=True)
class State:
    """A line after some record."""

    registered_by: tuple[int, ...] = ()
    """Number of the record of each version: it says which manifest is the version's."""
    removed: frozenset[int] = frozenset()
    aliases: Mapping[str, AliasState] = field(default_factory=dict)
    fence: int = 0
    """The largest token that was shown; a smaller one is refused."""

    @property
    def versions(self) -> int:
        """How many are registered: 0 to this less 1."""
        return len(self.registered_by)

    def alias(self, name: str) -> AliasState:
        """Where an alias points."""
        return self.aliases.get(name, AliasState())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "registered_by": list(self.registered_by),
            "removed": sorted(self.removed),
            "aliases": {
                name: asdict(alias) | {"fallback": list(alias.fallback)} for name, alias in sorted(self.aliases.items())
            },
            "fence": self.fence,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> State:
        """What `as_dict` gave."""
        aliases = {
            name: AliasState(**{**one, "fallback": tuple(one["fallback"])}) for name, one in value["aliases"].items()
        }
        return cls(tuple(value["registered_by"]), frozenset(value["removed"]), aliases, value["fence"])


@dataclass(frozen=True)
class Move:
    """An alias goes from one version to another."""

    alias: str
    before: int
    after: int


@dataclass(frozen=True)
class Event:
    """What a record says that happened."""

    kind: Kind
    version: int | None
    """The version that it is about; None for a fence."""
    moves: tuple[Move, ...] = ()
    fence: int | None = None
    """The token that was shown."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"moves": [asdict(move) for move in self.moves]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Event:
        """What `as_dict` gave."""
        return cls(value["kind"], value["version"], tuple(Move(**move) for move in value["moves"]), value["fence"])


def after(state: State, event: Event, number: int) -> State:
    """The state after an event.

    Args:
        number: of the event's record.

    Raises:
        RegistryError: when the event cannot have happened in this state: what no writer of this module makes.
    """
    if event.kind == "registered":
        if event.version != state.versions:
            raise RegistryError(f"version {event.version} is registered when version {state.versions} is next")
        state = replace(state, registered_by=(*state.registered_by, number))
    elif event.version is not None and not 0 <= event.version < state.versions:
        raise RegistryError(f"there is no version {event.version}")
    if event.kind == "removed":
        assert event.version is not None
        _check_removable(state, event.version)
        state = replace(state, removed=state.removed | {event.version})
    if event.fence is not None:
        _check_fence(state, event.fence)
        state = replace(state, fence=event.fence)
    for move in event.moves:
        state = _moved(state, move, event.kind, number)
    return state


def _moved(state: State, move: Move, kind: Kind, number: int) -> State:
    check_alias(move.alias)
    current = state.alias(move.alias)
    if current.version != move.before:
        raise ConflictError(
            f"{move.alias} points to version {current.version}, not to {move.before}: somebody else has moved it "
            "meanwhile; look again and decide anew"
        )
    if not 0 <= move.after < state.versions:
        raise RegistryError(f"there is no version {move.after}")
    if move.after in state.removed:
        raise RegistryError(f"version {move.after} was removed: choose another one")
    back = kind == "rolled back" or (kind == "decided" and move.after == 0 and move.alias != CANDIDATE)
    # A roll-back to what was never on the way here begins nothing anew: what is left stays within reach.
    back = back and (move.after == 0 or move.after in current.fallback)
    if back:
        fallback = _fallback_at(current.fallback, move.after)
    else:
        fallback = (*(one for one in current.fallback if one != move.after), current.version)
    moved = AliasState(move.after, number, fallback, back)
    return replace(state, aliases={**state.aliases, move.alias: moved})


def _fallback_at(fallback: tuple[int, ...], version: int) -> tuple[int, ...]:
    """What is left of the way back at one of its versions; nothing at a version that is not on it."""
    return fallback[: fallback.index(version)] if version in fallback else ()


def check_alias(name: str) -> None:
    """Refuse a name that no alias may have."""
    if name == REFERENCE:
        raise RegistryError("'reference' is version 0 for ever and cannot be moved: choose another alias")
    if not _ALIAS.fullmatch(name):
        raise RegistryError(f"{name!r} is no name of an alias: small letters, digits, - and _, a letter first")


def _check_fence(state: State, fence: int) -> None:
    if fence < state.fence:
        raise ConflictError(
            f"the lease with token {fence} was taken over (token {state.fence} has been here): nothing was changed; "
            "take the lease again and decide anew"
        )


def _check_removable(state: State, version: int) -> None:
    if version == 0:
        raise RegistryError("version 0 is the reference, which is never removed: every roll-back may need it")
    holding = [name for name, alias in state.aliases.items() if alias.version == version]
    if holding:
        raise RegistryError(f"version {version} is what {', '.join(holding)} points to: move it first")
    if version in state.removed:
        raise RegistryError(f"version {version} was removed already")


def promotion(
    state: State, alias: str, version: int, expected: int, seen: int | None = None, fence: int | None = None
) -> Event | None:
    """A person's move of an alias to a version, or None when that is where it points and is expected to.

    Args:
        expected: the version that it has to point to now.
        seen: number of the record that moved it there, where the caller knows: it also notices when the alias went
            elsewhere and came back meanwhile.
        fence: the token of the lease under which this was decided.

    Raises:
        ConflictError: when the alias points elsewhere, or the lease was taken over.
    """
    check_seen(state, alias, seen)
    if fence is not None:
        _check_fence(state, fence)
    if version == expected == state.alias(alias).version:
        return None  # a move on the spot would be its own way back
    return Event("promoted", version, (Move(alias, expected, version),), fence)


def check_seen(state: State, alias: str, seen: int | None) -> None:
    """Refuse to act on an alias that has moved since it was looked at."""
    current = state.alias(alias)
    if seen is not None and seen != current.moved_by:
        raise ConflictError(
            f"{alias} was moved meanwhile (to version {current.version}, by record {current.moved_by}): nothing was "
            "changed; look again and decide anew"
        )


def roll_back_target(state: State, alias: str, to: int | None) -> int:
    """The version a roll-back goes to.

    Args:
        to: a version, or None for what the alias pointed to before. The latter stands still when the last move was a
            roll-back already, so that the command can be repeated.

    Raises:
        RegistryError: when there is nothing to go back to.
    """
    current = state.alias(alias)
    if alias not in state.aliases and alias != PRODUCTION:
        raise RegistryError(f"there is no alias {alias!r}; there are {', '.join(sorted({*state.aliases, PRODUCTION}))}")
    if to is not None:
        return to
    if current.rolled_back:
        return current.version
    left = [version for version in current.fallback if version not in state.removed]
    if not left:
        raise RegistryError(
            f"{alias} points to version {current.version} and never pointed to another one: there is no previous "
            "version to go back to (--to reference is always possible)"
        )
    return left[-1]


def roll_back(state: State, alias: str, target: int) -> Event | None:
    """The move of a roll-back to ``target``, or None when the alias points there already."""
    current = state.alias(alias)
    return None if current.version == target else Event("rolled back", target, (Move(alias, current.version, target),))


def decision(state: State, alias: str, version: int, goes_to: int | None, seen: int | None, fence: int | None) -> Event:
    """What the gate decided of a version: it becomes the candidate, and the alias may move.

    Args:
        goes_to: where the alias goes, None to leave it.
        seen: number of the record that had moved the alias when the decision was made.

    Raises:
        ConflictError: when the alias has moved meanwhile, or the lease was taken over.
    """
    if goes_to is not None:
        check_seen(state, alias, seen)
    ways = ((CANDIDATE, version), *([] if goes_to is None else [(alias, goes_to)]))
    moves = tuple(Move(name, state.alias(name).version, to) for name, to in ways if state.alias(name).version != to)
    return Event("decided", version, moves, fence)
