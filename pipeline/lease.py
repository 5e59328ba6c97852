"""A lock made of objects that are created exclusively, for stores that have no locks.

A lease is a row of generations 1, 2, 3 ... Each is one small document, created exclusively, so that nobody shares a
generation. Its owner overwrites it with a rising ``beat`` every few seconds. Who wants the lease looks at the newest
generation, and creates the next one when that is released, or when it has not changed for ``stale_s`` seconds by the
looker's own clock: clocks of different machines are never compared.

The lease saves work, it does not protect anything. A process that is suspended for longer than ``stale_s`` and then
goes on does so beside its successor (`Lease.lost` tells it so when it beats next). Whoever holds a lease must
therefore write only what a second writer would write alike, such as files named by their content. ``number`` rises
with every owner, for stores that can refuse an older writer by it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from pipeline.errors import ArtifactError

STALE_S = 30.0
"""After how many seconds without a beat an owner counts as dead, unless the users of a place agree on another time."""


class Documents(Protocol):
    """What a lease asks of the place it lies in; a `pipeline.places.Place` does it."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...

    def create(self, name: str, data: bytes) -> bool: ...

    def remove(self, name: str) -> None: ...


@dataclass(frozen=True)
class Generation:
    """What the document of one generation says. ``owner`` is different for every attempt to take the lease."""

    number: int
    owner: str
    beat: int = 0
    released: bool = False


@dataclass(frozen=True)
class Watched:
    """The newest generation as it was seen last, and since when it has looked like this by the looker's clock."""

    generation: Generation
    since: float


@dataclass(frozen=True)
class Take:
    """Create this generation."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Look again later, remembering this."""

    watched: Watched


@dataclass(frozen=True)
class Hold:
    """The lease is the looker's."""

    number: int


def decide(
    newest: Generation | None, owner: str, watched: Watched | None, now: float, stale_s: float
) -> Take | Wait | Hold:
    """What somebody who wants the lease does next.

    Args:
        newest: the newest generation there is; None when there never was one.
        owner: who wants the lease.
        watched: what the last call said to remember.
        now: the looker's clock, in seconds; it must not go back.
    """
    if newest is None:
        return Take(1)
    if newest.owner == owner and not newest.released:
        return Hold(newest.number)
    if newest.released:
        return Take(newest.number + 1)
    if watched is None or watched.generation != newest:
        return Wait(Watched(newest, now))
    if now - watched.since >= stale_s:
        return Take(newest.number + 1)
    return Wait(watched)


class Lease:
    """One process's hold on a place, from `acquire` to `release`.

    Args:
        documents: where the generations lie, and nothing else.
        stale_s: after how many seconds without a beat an owner counts as dead; the same for all who use the place.
            It beats six times in this time, and who waits looks thirty times.
        least: no smaller number is taken, where a store has seen numbers of a place that is gone.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        stale_s: float = STALE_S,
        least: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._documents = documents
        self._stale_s, self._least, self._clock, self._sleep = stale_s, least, clock, sleep
        self._owner = uuid.uuid4().hex
        self._watched: Watched | None = None
        self._mine: Generation | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = False
        """Whether somebody else has taken a later generation (known from the next beat on)."""

    @property
    def number(self) -> int:
        """The generation held: larger than that of everybody who held the lease before."""
        assert self._mine is not None, "the lease is not held"
        return self._mine.number

    def acquire(self, waiting: Callable[[], None]) -> None:
        """Take the lease and keep it, waiting as long as its owner beats; ``waiting`` is called once if so."""
        if not self.attempt():
            waiting()
            self._sleep(self._stale_s / 30)
            while not self.attempt():
                self._sleep(self._stale_s / 30)
        self._begin_beating()

    def acquire_unless_alive(self) -> bool:
        """Take the lease and keep it, unless its owner beats, which shows within a sixth of ``stale_s``; false if so.
        An owner that does not beat is waited for until it counts as dead."""
        seen: Generation | None = None
        while not self.attempt():
            assert self._watched is not None
            if seen is not None and self._watched.generation != seen:
                return False
            seen = self._watched.generation
            self._sleep(self._stale_s / 30)
        self._begin_beating()
        return True

    def attempt(self) -> bool:
        """Look once, and take the lease if it is free or stale; true when it is held. Nothing beats yet."""
        while True:
            verdict = decide(self._newest(), self._owner, self._watched, self._clock(), self._stale_s)
            if isinstance(verdict, Wait):
                self._watched = verdict.watched
                return False
            if isinstance(verdict, Hold):
                self._mine, self._watched, self.lost = Generation(verdict.number, self._owner), None, False
                self._sweep(verdict.number)
                return True
            # Whoever created it is looked for again in either case: a repeated request may be told that its object is
            # there already, and older generations are swept, so that a number may be free a second time.
            number = max(verdict.number, self._least)
            self._documents.create(_name(number), _text(Generation(number, self._owner)))

    def release(self) -> None:
        """Let the next one take it. A place that cannot be reached is left as it is: the lease goes stale."""
        assert self._mine is not None, "the lease is not held"
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(ArtifactError):
            if not self._superseded():
                self._documents.write(_name(self.number), _text(replace(self._mine, released=True)))
        self._mine = None

    @contextlib.contextmanager
    def held(self, waiting: Callable[[], None]) -> Iterator[Lease]:
        """The lease for the length of a block."""
        self.acquire(waiting)
        try:
            yield self
        finally:
            self.release()

    def beat(self) -> None:
        """Show that the owner lives, unless the lease is lost."""
        assert self._mine is not None, "the lease is not held"
        if not self._superseded():
            self._mine = replace(self._mine, beat=self._mine.beat + 1)
            self._documents.write(_name(self.number), _text(self._mine))

    def _begin_beating(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _superseded(self) -> bool:
        self.lost = self.lost or self._newest_number() > self.number
        return self.lost

    def _keep(self) -> None:
        while not self.lost and not self._stop.wait(self._stale_s / 6):
            with contextlib.suppress(ArtifactError):  # the next beat may get through
                self.beat()

    def _newest_number(self) -> int:
        return max((int(name) for name in self._documents.names() if name.isdigit()), default=0)

    def _newest(self) -> Generation | None:
        number = self._newest_number()
        if number == 0:
            return None
        try:
            found = json.loads(self._documents.read(_name(number)))
            return Generation(number, str(found["owner"]), int(found["beat"]), bool(found["released"]))
        except FileNotFoundError:
            return Generation(number, "swept")  # there is a later one by now
        except (ValueError, KeyError, TypeError):
            return Generation(number, "unreadable")  # goes stale like that of an owner who died

    def _sweep(self, number: int) -> None:
        with contextlib.suppress(ArtifactError):
            for name in self._documents.names():
                if name.isdigit() and int(name) < number:
                    self._documents.remove(name)


def _name(number: int) -> str:
    return f"{number:08d}"


def _text(generation: Generation) -> bytes:
    return json.dumps(asdict(generation), sort_keys=True).encode()
