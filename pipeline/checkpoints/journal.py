"""Metrics as JSON lines that only grow; a checkpoint remembers how far they had come."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cursor:
    """A beginning of a journal: so many bytes with this digest."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Journal:
    """Rows from a cursor on; what lies behind it (rows of steps that will be done again) is cut off.

    Raises:
        ValueError: when the file does not begin with what the cursor says.
    """

    def __init__(self, path: Path, cursor: Cursor) -> None:
        if not matches(path, cursor):
            raise ValueError(f"{path} does not begin with the {cursor.bytes} bytes that its checkpoint names")
        self._file = path.open("ab")
        self._file.truncate(cursor.bytes)
        self._digest = _digest(path, cursor.bytes)
        self._bytes = cursor.bytes

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is safe on the disk after the next `sync`."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._bytes += len(line)

    def mark(self) -> Cursor:
        """Everything so far. It still has to reach the disk (`sync`) before a checkpoint may name it."""
        self._file.flush()
        return Cursor(self._bytes, self._digest.hexdigest())

    def sync(self) -> None:
        """Write through to the disk; another thread may call this."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let the file go. What no checkpoint names need not reach the disk, which may be full."""
        with contextlib.suppress(OSError):
            self._file.close()


def matches(path: Path, cursor: Cursor) -> bool:
    """Whether a file begins with what the cursor says."""
    if not cursor.bytes:
        return True
    try:
        return path.stat().st_size >= cursor.bytes and _digest(path, cursor.bytes).hexdigest() == cursor.sha256
    except FileNotFoundError:
        return False


def _digest(path: Path, size: int) -> Any:
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            while size and (chunk := file.read(min(size, 1 << 20))):
                digest.update(chunk)
                size -= len(chunk)
    return digest
