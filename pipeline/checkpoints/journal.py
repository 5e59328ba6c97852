"""Metrics as JSON lines that only grow."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """The rows of a run so far, in memory and in a file where people can follow them.

    Nothing reads the file: a checkpoint has a copy of its own (`pipeline.checkpoints.layout`), so that a fault of this
    file is a fault of no checkpoint.

    Args:
        path: written anew.
        rows: the lines to begin with: those of the checkpoint that the run goes on from.
    """

    def __init__(self, path: Path, rows: bytes = b"") -> None:
        self._rows = bytearray(rows)
        self._file = path.open("wb")
        self._write(rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row, for people to see at once.

        Raises:
            ValueError: when it is not JSON (a number that is not finite).
        """
        line = as_line(row)
        self._rows += line
        self._write(line)

    def rows(self) -> bytes:
        """All lines so far."""
        return bytes(self._rows)

    def close(self) -> None:
        """Let the file go."""
        with contextlib.suppress(OSError):  # of a disk that is full; who needs the rows has them from `rows`
            self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"
