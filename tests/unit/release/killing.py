"""Forked processes that are killed before one of their operations on the file system, or at a random time (not a test).

Every call by which a process learns or changes what lies on its disk is counted, so that a kill can be put between any
two of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.objects import ObjectFiles
from pipeline.places import Place
from tests.unit.release import lines

Say = Callable[[dict[str, Any]], None]
"""Tells the parent something; once it has returned, a kill does not undo it."""

CHANGES = {"open", "mkdir", "link", "rename", "replace", "unlink", "rmdir", "fsync", "write", "sendfile", "flock"}
SYSTEM_CALLS = frozenset(CHANGES | {"scandir", "stat", "read"})
"""Before which a process on a local disk can be killed."""
REQUESTS = ("names", "size", "read", "chunks", "publish", "write", "create", "remove")
"""Before and after which it can be on an object store."""


# -- killing -----------------------------------------------------------------------------------------------


@dataclass
class Fate:
    """When a process is killed: before its ``point``-th operation, ``after_s`` seconds from its start, or never."""

    point: int | None = None
    after_s: float | None = None
    seen: int = 0
    """Operations so far."""


def watch(fate: Fate, say: Say, remote: bool) -> None:
    """Count this process's operations on the file system, and kill it at the point that its fate names."""

    def count(what: str, where: FrameType | None) -> None:
        if fate.seen == fate.point:
            say({"killed": f"{what} in {part_of(where)}"})
            os.kill(os.getpid(), signal.SIGKILL)
        fate.seen += 1

    if remote:
        # The client works in a thread of its own, so that its operations are counted where they are asked for, and a
        # second time when they are done.
        for name in REQUESTS:
            setattr(ObjectFiles, name, _counted(getattr(ObjectFiles, name), name, count))
        return

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in SYSTEM_CALLS:
            count(called.__name__, frame)

    sys.setprofile(profile)


def _counted(method: Callable[..., Any], name: str, count: Callable[[str, FrameType | None], None]) -> Any:
    def counted(*args: Any) -> Any:
        count(f"before {name}", sys._getframe())
        result = method(*args)
        count(f"after {name}", sys._getframe())
        return result

    return counted


def part_of(frame: FrameType | None) -> str:
    """Which directory of the line is being worked on, from the innermost call that names one."""
    while frame is not None:
        for value in frame.f_locals.values():
            if isinstance(value, str | Path | Place) and f"/{lines.NAME}/" in str(value):
                return str(value).split(f"/{lines.NAME}/")[1].split("/")[0].rstrip("')")
        frame = frame.f_back
    return "the line"


# -- one process -------------------------------------------------------------------------------------------


def run_process(work: Callable[[Say], object], fate: Fate, remote: bool) -> tuple[int, int]:
    """Fork a process that does ``work`` and says what it did.

    Returns:
        Its id and the end of a pipe with one JSON document a line.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    _be_the_child(work, fate, remote, writing)


def _be_the_child(work: Callable[[Say], object], fate: Fate, remote: bool, writing: int) -> NoReturn:
    def say(what: dict[str, Any]) -> None:
        os.write(writing, json.dumps(what).encode() + b"\n")

    try:
        if fate.point is not None:
            watch(fate, say, remote)
        work(say)
        sys.setprofile(None)
        say({"ended": True})
    except BaseException:
        sys.setprofile(None)
        say({"error": traceback.format_exc()})
    finally:
        os._exit(0)


def collect(processes: list[tuple[int, int]], fates: list[Fate]) -> tuple[list[list[dict[str, Any]]], Counter[str]]:
    """What processes said, when all have ended; those whose time it is are killed meanwhile."""
    began, running = time.monotonic(), dict(enumerate(processes))
    statuses: dict[int, int] = {}
    while running:
        for index, (pid, _) in list(running.items()):
            at = fates[index].after_s
            if at is not None and time.monotonic() - began >= at:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[index] = status
                del running[index]
        time.sleep(0.0005)
    said, kills = [], Counter[str]()
    for index, (_, reading) in enumerate(processes):
        with open(reading, "rb") as file:
            said.append([json.loads(line) for line in file])
        killed = os.WIFSIGNALED(statuses[index])
        at_point = next((one["killed"] for one in said[-1] if "killed" in one), None)
        if killed:
            kills[at_point or "at a random time"] += 1
    return said, kills
