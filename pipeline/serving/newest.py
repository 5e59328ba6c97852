"""What the registry says now: each request gets an answer that was looked up after it came.

Requests that come while a look-up is under way share the next one, so that a replica looks up one at a time, however
many requests there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.release.line import Line
from pipeline.release.state import State
from pipeline.release.trail import Record

FULL_S = 30.0
"""How often the whole listing is looked at: it is what shows that the end of the trail was cut off."""


class UnreachableError(RuntimeError):
    """The registry has not answered for longer than is allowed."""


@dataclass(frozen=True)
class Seen:
    """A state of the line, and when its look-up began (monotonic seconds)."""

    state: State
    at: float


class Reader:
    """Looks up what a line stands at: in full now and then and when something was recorded; otherwise it only asks
    whether something was.

    Args:
        line: whose state it is.
        clock: monotonic seconds.
    """

    def __init__(self, line: Line, clock: Callable[[], float] = time.monotonic) -> None:
        self._line, self._clock = line, clock
        self._head: Record | None = None
        self._full_at = float("-inf")

    def __call__(self) -> State:
        """The state at some instant of this call.

        Raises:
            RegistryError: when the trail is damaged.
            UnreachableError: when it is not there at all.
        """
        head, now = self._head, self._clock()
        if head is None or now - self._full_at >= FULL_S or self._line.trail.goes_on(head.number):
            head = self._line.trail.head()
            if head is None:  # a directory that was moved away looks like a line that never began
                raise UnreachableError(f"the audit trail in {self._line.place.root} is gone")
            self._head, self._full_at = head, now
        return head.state


class Newest:
    """The newest state, for one event loop.

    Args:
        read: looks it up; called in a thread of its own, one call at a time.
        stale_s: how old (since its look-up began) a state may be that is used because there is no newer one.
        lookup_s: how long a request waits for a look-up.
        failed: is told of every look-up that failed or took too long, for a metric.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        read: Callable[[], State],
        *,
        stale_s: float,
        lookup_s: float,
        failed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._stale_s, self._lookup_s = read, stale_s, lookup_s
        self._failed, self._clock = failed, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._current: asyncio.Task[Seen] | None = None
        self._next: asyncio.Task[Seen] | None = None
        self._last: Seen | None = None

    @property
    def age_s(self) -> float | None:
        """Seconds since the last successful look-up began; None before the first."""
        return None if self._last is None else self._clock() - self._last.at

    async def get(self) -> State:
        """A state that was looked up after this call; when the registry does not answer, the last known one.

        Raises:
            UnreachableError: when that is older than ``stale_s``, or there is none.
        """
        try:
            return (await asyncio.wait_for(asyncio.shield(self._shared()), self._lookup_s)).state
        except TimeoutError:
            why = f"the registry has not answered within {self._lookup_s:g} s"
        except (PipelineError, UnreachableError) as error:
            why = str(error)
        self._failed(why)
        if self._last is not None and self._clock() - self._last.at <= self._stale_s:
            return self._last.state
        raise UnreachableError(why)

    def close(self) -> None:
        """Look up nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _shared(self) -> asyncio.Task[Seen]:
        """The look-up that has not begun yet."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._current))
            self._next.add_done_callback(_retrieved)
        return self._next

    async def _after(self, current: asyncio.Task[Seen] | None) -> Seen:
        if current is not None:
            with contextlib.suppress(Exception):
                await asyncio.shield(current)
        self._current, self._next = self._next, None
        at = self._clock()
        state = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        self._last = Seen(state, at)
        return self._last


def _retrieved(task: asyncio.Task[Seen]) -> None:
    """Whoever waited may have left: then nobody asks for the error, and asyncio would complain."""
    if not task.cancelled():
        task.exception()
