"""Which version answers a request, and which ones are kept in memory. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline.errors import RegistryError
from pipeline.release.state import CANDIDATE, PRODUCTION, REFERENCE, State, roll_back_target
from pipeline.serving.options import GuardOptions


class UnknownModelError(ValueError):
    """A request names a model that is not served; the message says which ones are."""


@dataclass(frozen=True)
class Choice:
    """Who answers."""

    version: int
    name: str
    """By which name: an alias, ``reference``, or the version's number."""


def choose(state: State, model: str | None, key: str, options: GuardOptions, line: str) -> Choice:
    """The version that answers a request that arrives in this state.

    Args:
        model: what the request names; None is the same as the alias that is served.
        key: the request's user or id: the same key goes to the same side of a canary.
        line: the line's name, with which answers name their model: ``<line>/3``.

    Raises:
        UnknownModelError: when no such model is served.
    """
    name = (model or options.alias).removeprefix(f"{line}/")
    if name == options.alias:
        canary = _canary(state, options)
        if canary is not None and share_of(key, "canary") < options.canary_share:
            assert options.canary_alias is not None
            return Choice(canary, options.canary_alias)
        return Choice(state.alias(name).version, name)
    for known, version in names(state, options).items():
        if name == known:
            return Choice(version, known)
    served = ", ".join(names(state, options))
    raise UnknownModelError(f"the model {model!r} is not served here; there are {served}")


def names(state: State, options: GuardOptions) -> dict[str, int]:
    """Every name that a request may use, with its version."""
    found = {options.alias: state.alias(options.alias).version}
    if (canary := _canary(state, options)) is not None and options.canary_alias is not None:
        found[options.canary_alias] = canary
    held = wanted(state, options)
    if 0 in held:
        found[REFERENCE] = 0
    return found | {str(version): version for version in sorted(held)}


def wanted(state: State, options: GuardOptions) -> tuple[int, ...]:
    """Versions to keep in memory, the most important first: what is served, its canary, the reference, what a roll-back
    would go to, and the candidate; as many as there is room for."""
    order: list[int | None] = [
        state.alias(options.alias).version,
        _canary(state, options),
        0,
        _previous(state, options.alias),
        state.aliases[CANDIDATE].version if options.preload and CANDIDATE in state.aliases else None,
    ]
    there = [version for version in order if version is not None and version not in state.removed]
    return tuple(dict.fromkeys(there))[: options.max_loaded]


def share_of(key: str, purpose: str) -> float:
    """A number from [0, 1) that belongs to a key, another one for every purpose."""
    digest = hashlib.sha256(f"{purpose}:{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def check_alias(state: State, options: GuardOptions) -> None:
    """Refuse to serve an alias that there is not.

    Raises:
        RegistryError: naming those that there are.
    """
    for alias in filter(None, (options.alias, options.canary_alias)):
        if alias not in state.aliases and alias not in (PRODUCTION, CANDIDATE):
            there = ", ".join(sorted({*state.aliases, PRODUCTION}))
            raise RegistryError(f"there is no alias {alias!r} in this line: there are {there}")


def _canary(state: State, options: GuardOptions) -> int | None:
    """An alias that was never moved would point to the reference: as a canary it is none yet."""
    if options.canary_alias is None or options.canary_alias not in state.aliases:
        return None
    version = state.aliases[options.canary_alias].version
    return None if version in state.removed else version


def _previous(state: State, alias: str) -> int | None:
    try:
        return roll_back_target(state, alias, None)
    except RegistryError:  # there is nothing to go back to
        return None
