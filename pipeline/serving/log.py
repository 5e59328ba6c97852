"""The comparison log: answers in the format of `pipeline.traffic`, for `jobs/watch.py` to read.

Rows are written by a thread; who answers requests never waits for a disk. When it cannot keep up, or the disk is full,
rows are dropped and counted. Every process writes files of its own, readable by its user only: they hold what users
have asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pipeline.traffic import LogRow, dump

_ROWS_WAITING = 4096
FILE_BYTES = 64 << 20
"""After which a file is ended and the next one begun; a new day begins one too."""


class LogWriter:
    """Appends rows to files of one process.

    Args:
        directory: made when it is not there.
        dropped: is told how many rows were lost.
        file_bytes: of one file.
        now: the time, for the names of files.
    """

    def __init__(
        self,
        directory: Path,
        dropped: Callable[[int], None],
        *,
        file_bytes: int = FILE_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory, self._dropped, self._file_bytes, self._now = directory, dropped, file_bytes, now
        self._process = f"{socket.gethostname()}-{os.getpid()}"
        self._rows: queue.Queue[LogRow | None] = queue.Queue(_ROWS_WAITING)
        self._file: BinaryIO | None = None
        self._day = ""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, row: LogRow) -> None:
        """Write a row soon, or drop it when too many wait."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._dropped(1)

    def close(self) -> None:
        """Write what waits, and end the file."""
        self._rows.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (row := self._rows.get()) is not None:
            rows = [row]
            last = False
            while not self._rows.empty():
                if (row := self._rows.get()) is None:
                    last = True
                    break
                rows.append(row)
            self._append(rows)
            if last:
                break
        self._end()

    def _append(self, rows: list[LogRow]) -> None:
        written = whole = 0
        try:
            for row in rows:
                data, file = dump(row), self._open()
                whole = file.tell()
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, "a line was cut off")
                written += 1
        except OSError:
            self._cut(whole)
            self._dropped(len(rows) - written)

    def _cut(self, whole: int) -> None:
        """Take back a line that was cut off, which the next one must not continue. The file goes on: on a disk that
        stays full each row would begin another one."""
        if self._file is None:
            return
        try:
            self._file.seek(whole)
            self._file.truncate()
        except OSError:
            self._end()

    def _open(self) -> BinaryIO:
        """The file to write to, a new one where that is due."""
        day = f"{self._now():%Y%m%d}"
        if self._file is not None and (day != self._day or self._file.tell() >= self._file_bytes):
            self._end()
        number = 0
        while self._file is None:
            path = self._directory / f"{day}-{self._process}-{number:04d}.jsonl"
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                number += 1
                continue
            self._file, self._day = os.fdopen(handle, "wb", buffering=0), day
        return self._file

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # a network's disk may say only now that it is full
                file.close()
