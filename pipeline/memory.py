"""Memory that a process of this machine, or of this container, can still get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def available_bytes(root: Path = Path("/"), machine_bytes: int | None = None) -> int:
    """What is available to this process: on the machine, or under the tightest limit of its control groups.

    Pages that only cache files count as available everywhere, for the kernel gives them up.

    Args:
        root: where ``proc`` and ``sys`` are.
        machine_bytes: available on the whole machine; None asks the kernel.
    """
    machine = psutil.virtual_memory().available if machine_bytes is None else machine_bytes
    return max(0, min([machine, *_under_limits(root)]))


def _under_limits(root: Path) -> Iterator[int]:
    """What every limit above this process leaves."""
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for mount in (mounts, mounts / "unified"):  # the second where the machine has both versions
                yield from _along(mount, path, *_V2)
        elif "memory" in controllers.split(","):
            yield from _along(mounts / "memory", path, *_V1)


def _along(mount: Path, path: str, limit: str, usage: str, caches: tuple[str, ...]) -> Iterator[int]:
    """What the limits of a group and of all groups above it leave."""
    group = mount / path.lstrip("/")
    # In a container the path may be the host's, of which only the mount is seen here.
    for place in (group, *group.parents):
        if not place.is_relative_to(mount):
            return
        allowed, used = _number(place / limit), _number(place / usage)
        if allowed is not None and used is not None:
            statistics = dict(line.split(maxsplit=1) for line in _lines(place / "memory.stat") if " " in line)
            yield allowed - used + sum(int(statistics.get(name, 0)) for name in caches)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit (``max``)."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
