"""What a pool of actors works through, and what it does when one dies: pure, no Ray."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ClusterError

MAX_DEATHS = 3
"""Actors that may die over one call, or one after another while starting, before the map gives up."""


@dataclass(frozen=True)
class Call:
    """``method(*arguments)`` of the hosted object. Another actor may do it again: it must not mind."""

    method: str
    arguments: tuple[Any, ...]
    what: str
    """What it computes, for people, such as 'shard 3 of train'."""


Task = tuple[int, Call]
"""A call and its number."""


class Waiting:
    """Calls that no actor has: those given back first, then the rest. False when there are certainly none."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._rest = enumerate(calls)
        self._first: deque[Task] = deque()
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._first) or not self._ended

    def at_most(self, number: int) -> int:
        """How many calls there are, counted up to ``number``."""
        self._first.extend(itertools.islice(self._rest, number - len(self._first)))
        self._ended = len(self._first) < number
        return len(self._first)

    def take(self) -> Task | None:
        if self._first:
            return self._first.popleft()
        task = next(self._rest, None)
        self._ended = task is None
        return task

    def give_back(self, task: Task) -> None:
        self._first.appendleft(task)


class Deaths:
    """Decides what the death of an actor means: an error that ends the map, or None to go on with a new actor.

    Args:
        hosted: what the actors host, for people.
        lower: the options that let an actor need less memory, for people.
    """

    def __init__(self, hosted: str, lower: str) -> None:
        self._hosted, self._lower = hosted, lower
        self._over_call: dict[int, int] = {}
        self._starting = 0

    def started(self) -> None:
        """An actor has started: deaths before it say nothing about the next one."""
        self._starting = 0

    def while_starting(self, cause: str, ran: bool = True) -> ClusterError | None:
        """An actor died before it was given any call. One that never ``ran`` died of something else (its node), and
        a lost node takes several with it."""
        if not ran:
            return None
        self._starting += 1
        if self._starting < MAX_DEATHS:
            return None
        return ClusterError(
            f"{self._starting} actors in a row died while starting ({self._hosted}); the last one: {cause}; "
            "if they ran out of memory, lower cluster.max_actors or use nodes with more of it"
        )

    def over_call(self, index: int, what: str, cause: str) -> ClusterError | None:
        """An actor died over call number ``index``."""
        count = self._over_call[index] = self._over_call.get(index, 0) + 1
        if count < MAX_DEATHS:
            return None
        return ClusterError(
            f"{count} actors died while they computed {what}; the last one: {cause}; if they ran out of memory, lower "
            f"one of {self._lower}; then run the same command again to go on"
        )
