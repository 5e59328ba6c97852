"""Who works on what in a shared directory: a claim that one process holds and that dies with it.

A claim saves work that two jobs would do twice; what they write is right without it. It is a lock of the kernel on
``<name>.lock``, so it is free the moment its holder ends, however that happens, with ``<name>.json`` beside it for
people who wonder who that is.

Both files are removed, by the holder or, after a kill, by whoever sweeps. That is safe because only a process that
has the lock removes the lock file: filelock, once it is given a lock, looks whether the file still has a name and
begins anew with a fresh one if not, so nobody ends up with the lock of a file that others cannot find.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.disk import NO_LOCKS, acquire, make_directory

_POLL_S = 0.2
_PATIENCE_S = 0.5
"""A lock held for no longer than this is somebody's who sweeps, or leaves: nobody is told of it."""


@contextlib.contextmanager
def claim(directory: Path, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold ``name`` exclusively among all processes and threads that ask in this directory.

    Where the file system knows no locks there is nothing to hold, and the block runs at once.

    Args:
        waiting: called once with who holds it, such as ``process 12 on node-3 since 12:01:07 UTC``, when it is held.
    """
    make_directory(directory)
    lock = FileLock(directory / f"{name}.lock", poll_interval=_POLL_S, fallback_to_soft=False)
    owner = directory / f"{name}.json"
    with contextlib.ExitStack() as stack:
        try:
            acquire(lock, lambda: waiting(_read_owner(owner)), _PATIENCE_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            Path(lock.lock_file).unlink(missing_ok=True)
        else:
            stack.callback(_remove, lock)
            _write_owner(owner)
        yield


def sweep_claims(directory: Path) -> None:
    """Remove the files of claims whose holders were killed."""
    for path in directory.glob("*.lock"):
        lock = FileLock(path, timeout=0, fallback_to_soft=False)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire()
            _remove(lock)


def _remove(lock: FileLock) -> None:
    """Remove a held claim's files, then let it go; in this order (see above)."""
    path = Path(lock.lock_file)
    try:
        with contextlib.suppress(OSError):  # what stays is swept later
            for name in (_temporary(path.with_suffix(".json")), path.with_suffix(".json"), path):
                name.unlink(missing_ok=True)
    finally:
        lock.release()


def _write_owner(path: Path) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):  # it only informs
        _temporary(path).write_text(json.dumps(owner) + "\n")
        _temporary(path).replace(path)


def _temporary(path: Path) -> Path:
    return path.with_suffix(".json.tmp")  # one name will do: only the holder writes


def _read_owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        since = datetime.fromisoformat(owner["since"]).astimezone(UTC)
        today = since.date() == datetime.now(UTC).date()
        return f"process {owner['pid']} on {owner['host']} since {since:{'' if today else '%Y-%m-%d '}%H:%M:%S} UTC"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that did not say who it is"
