"""Versions in memory: those that are wanted are loaded ahead, others when they are asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pipeline.errors import PipelineError

T = TypeVar("T")

RETRY_S = 5.0
"""For how long a version that could not be loaded is not tried again: reading all of it may take as long."""


class LoadError(RuntimeError):
    """A version cannot be loaded, or not in time."""


class Shelf(Generic[T]):
    """Loaded versions, for one event loop. What is taken off it lives on until the last request that uses it ends.

    Args:
        load: loads a version, in a thread.
        room: how many are kept.
        failed: is told of every version that could not be loaded, with the reason.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        load: Callable[[int], T],
        room: int,
        *,
        failed: Callable[[int, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._room, self._failed, self._clock = load, room, failed, clock
        # One thread loads what is asked for and one what is wanted, so that nobody waits behind a preload.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._tasks: dict[int, asyncio.Task[T]] = {}
        self._refused: dict[int, tuple[float, str]] = {}
        """When and why a version could not be loaded that was asked for."""
        self._put_off: dict[int, float] = {}
        """When one could not be loaded ahead; who asks for it is not refused for that."""
        self._wanted: tuple[int, ...] = ()
        self._preload: asyncio.Task[None] | None = None

    def loaded(self) -> dict[int, T]:
        """What is there."""
        return {
            version: task.result()
            for version, task in self._tasks.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }

    def want(self, versions: Sequence[int]) -> None:
        """Load these in the background, in this order; they stay until others are wanted."""
        self._wanted = tuple(versions)
        missing = any(version not in self._tasks and not self._is_put_off(version) for version in versions)
        if missing and (self._preload is None or self._preload.done()):
            self._preload = asyncio.create_task(self._load_wanted())

    async def get(self, version: int, within_s: float) -> T:
        """A version, loaded now if it is not there.

        Raises:
            LoadError: when it cannot be loaded, or is not there within so many seconds.
        """
        at, reason = self._refused.get(version, (float("-inf"), ""))
        if self._clock() - at < RETRY_S:
            raise LoadError(reason)
        task = self._task(version)
        if not task.done():
            done, _ = await asyncio.wait({task}, timeout=within_s)
            if not done:
                raise LoadError(f"version {version} is still being loaded after {within_s:g} s")
        if (error := task.exception()) is not None:
            self._refused[version] = (self._clock(), _reason(error))
            raise LoadError(_reason(error)) from error
        if version in self._tasks:
            self._tasks[version] = self._tasks.pop(version)  # what was used last goes last
        return task.result()

    def close(self) -> None:
        """Load nothing more."""
        if self._preload is not None:
            self._preload.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _is_put_off(self, version: int) -> bool:
        return self._clock() - self._put_off.get(version, float("-inf")) < RETRY_S

    def _task(self, version: int) -> asyncio.Task[T]:
        if version not in self._tasks:
            self._tasks[version] = asyncio.create_task(self._run(version))
            self._tasks[version].add_done_callback(lambda task: self._ended(version, task))
        return self._tasks[version]

    async def _run(self, version: int) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._load, version)

    def _ended(self, version: int, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._tasks.pop(version, None)
        elif (error := task.exception()) is not None:
            self._tasks.pop(version, None)
            self._put_off[version] = self._clock()
            self._failed(version, _reason(error))
        else:
            self._refused.pop(version, None)
            self._put_off.pop(version, None)
            self._make_room(version)

    def _make_room(self, newest: int) -> None:
        for version in [one for one in self.loaded() if one not in self._wanted and one != newest]:
            if len(self.loaded()) <= self._room:
                return
            del self._tasks[version]

    async def _load_wanted(self) -> None:
        for version in self._wanted:
            if not self._is_put_off(version):
                await asyncio.wait({self._task(version)})


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
