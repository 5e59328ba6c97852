"""Production logs as whole lines, each read once: files that grow, are rotated, cut off or copied, and vanish.

A file is known again by what was read of it, wherever it lies by now: the digest of its first bytes and that of the
bytes before the place up to which it was read. So renaming (app.jsonl to app.jsonl.1), copying and cutting off, and a
restart on a machine that numbers files anew neither lose a line nor give one twice. How far each file was read is a
value that the caller keeps (`Position`), together with what it made of the lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import DataError

MAX_LINE_BYTES = 1 << 20
"""A longer line is skipped: it is counted, and never held in memory."""
_MAX_BATCH_BYTES = 16 << 20
_KEPT = 1000
"""Files that went away and are remembered, should they come back."""
_MARK_BYTES = 1024
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"


@dataclass(frozen=True)
class Position:
    """How far a file was read, and by what it is known again."""

    path: str
    device: int
    inode: int
    offset: int = 0
    """Bytes that were read."""
    line: int = 0
    """Lines that were read."""
    head: str = ""
    """Digest of the first bytes, at most `_MARK_BYTES`, of those that were read."""
    tail: str = ""
    """Digest of the last ones."""
    inside: bool = False
    """Whether the offset is inside of a line that is too long."""
    there: bool = True
    """Whether the file was found at the last look."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """One line of a log, without its line break; None is one that is too long."""

    path: str
    number: int
    """From 1."""
    text: bytes | None

    @property
    def where(self) -> str:
        """File and line, for people."""
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Look:
    """What a look at the logs found."""

    positions: tuple[Position, ...]
    """Of all files there are and of those that went away, in the order in which they are read."""
    unread_bytes: int
    restarted: int
    """Files that were cut off or written anew since the last look, and are read from their beginning."""
    lost_bytes: int
    """Bytes of files that went away since the last look that were seen and never read."""


class Logs:
    """The logs at a path: a file, or a directory with all its ``*.jsonl`` (and rotated ``*.jsonl.1``), at any depth.

    Of a file that is named, what it was before (``app.jsonl.1``) is read to its end when it was read from before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Bytes of the files at the last look, to tell what was lost of one that goes away.
        self._sizes: dict[tuple[int, int], int] = {}
        self._stamps: dict[tuple[int, int], tuple[int, ...]] = {}

    def check(self) -> None:
        """Refuse a path that cannot be read.

        Raises:
            DataError: when there is nothing at the path, or it may not be read.
        """
        what = f"logs: {self._path}"
        if re.match(r"[a-z0-9+]+:/", str(self._path)):  # a path has one slash of a URL's two
            raise DataError(f"{what} is a URL; give a file or a directory of this machine")
        if not self._path.exists():
            raise DataError(f"{what} is not there; give a JSONL file, or a directory of them (it may be empty)")
        if not (self._path.is_dir() or self._path.is_file()):
            raise DataError(f"{what} is neither a file nor a directory; a pipe cannot be read again after a restart")
        if not os.access(self._path, os.R_OK | (os.X_OK if self._path.is_dir() else 0)):
            raise DataError(f"{what} may not be read by this user; change its permissions")

    def look(self, known: Iterable[Position]) -> Look:
        """Find the files, and how far each was read.

        Args:
            known: positions as the last look and `read` left them.

        Raises:
            DataError: when a file or a directory may not be read.
        """
        found: dict[tuple[int, int], tuple[Path, os.stat_result]] = {}
        for path in self._files():
            if (status := _status(path)) is not None:  # else it has just gone away
                found.setdefault((status.st_dev, status.st_ino), (path, status))
        open_ = {(one.device, one.inode): one for one in known}
        matched: dict[tuple[int, int], Position] = {}
        restarted = 0
        for key, (path, status) in found.items():
            if key in open_:
                # What has not changed since the last look is not opened: there may be thousands of old files.
                if self._stamps.get(key) == _stamp(status, open_[key]) or _is_same(path, status.st_size, open_[key]):
                    matched[key] = open_.pop(key)
                else:  # cut off or written anew; what was read of it may go on elsewhere, in a copy
                    restarted += 1
        left = sorted((one for one in open_.values() if one.offset), key=lambda one: -one.offset)
        for key, (path, status) in found.items():
            if key not in matched and (
                copy := next((one for one in left if _is_same(path, status.st_size, one)), None)
            ):
                left.remove(copy)
                del open_[copy.device, copy.inode]
                matched[key] = copy
        if not self._path.is_dir():  # of the older files beside it only those that are known
            found = {key: one for key, one in found.items() if key in matched or one[0] == self._path}
        ordered = sorted(found.items(), key=lambda one: (one[1][1].st_mtime_ns, str(one[1][0])))
        positions = [
            replace(matched.get(key, Position("", 0, 0)), path=str(path), device=key[0], inode=key[1], there=True)
            for key, (path, _) in ordered
        ]
        lost = sum(max(0, self._sizes.get(key, 0) - one.offset) for key, one in open_.items() if one.there)
        gone = [replace(one, there=False) for key, one in open_.items() if key not in found and one.offset]
        self._sizes = {key: status.st_size for key, (_, status) in ordered}
        self._stamps = {key: _stamp(status, one) for (key, (_, status)), one in zip(ordered, positions, strict=True)}
        unread = sum(status.st_size - one.offset for (_, (_, status)), one in zip(ordered, positions, strict=True))
        return Look((*gone[-_KEPT:], *positions), unread, restarted, lost)

    def has_more(self, position: Position) -> bool:
        """Whether the last look saw more of a file than was read."""
        return position.there and self._sizes.get((position.device, position.inode), 0) > position.offset

    def _files(self) -> Iterator[Path]:
        if not self._path.is_dir():
            yield self._path
            beside = self._path.parent
            yield from sorted(path for path in _listed(beside) if path.name.startswith(f"{self._path.name}."))
            return
        for folder, _, names in os.walk(self._path, onerror=_refuse):
            for name in names:
                if name.partition(".jsonl")[0] != name and not name.startswith("."):
                    yield from () if name.endswith(_COMPRESSED) else (Path(folder, name),)


def read(position: Position, most: int) -> tuple[list[Line], Position]:
    """Whole lines from where a file was read to, at most ``most``, and the position after them.

    A last line without line break is left for later. A file that vanished gives nothing.

    Raises:
        DataError: when it may not be read.
    """
    try:
        with open(position.path, "rb") as file:
            return _read(file, position, most)
    except FileNotFoundError:
        return [], position
    except OSError as error:
        raise DataError(f"logs: {position.path} cannot be read: {error.strerror}; mend that, or remove it") from error


def _read(file: BinaryIO, position: Position, most: int) -> tuple[list[Line], Position]:
    lines: list[Line] = []
    offset, number, inside = position.offset, position.line, position.inside
    file.seek(offset)
    while len(lines) < most and offset - position.offset < _MAX_BATCH_BYTES:
        text = file.readline(MAX_LINE_BYTES)
        if text.endswith(b"\n"):
            offset += len(text)
            number += 1
            lines.append(Line(position.path, number, None if inside else text[:-1]))
            inside = False
        elif len(text) == MAX_LINE_BYTES or (inside and text):
            offset, inside = offset + len(text), True
        else:
            break
    if offset == position.offset:
        return lines, position
    head, tail = _marks(file, offset)
    return lines, replace(position, offset=offset, line=number, head=head, tail=tail, inside=inside)


def _marks(file: BinaryIO, offset: int) -> tuple[str, str]:
    size = min(_MARK_BYTES, offset)
    file.seek(0)
    head = hashlib.sha256(file.read(size)).hexdigest()
    file.seek(offset - size)
    return head, hashlib.sha256(file.read(size)).hexdigest()


def _is_same(path: Path, size: int, position: Position) -> bool:
    """Whether what was read up to a position is the beginning of a file."""
    if size < position.offset:
        return False
    if position.offset == 0:
        return True
    try:
        with path.open("rb") as file:
            return _marks(file, position.offset) == (position.head, position.tail)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f"logs: {path} cannot be read: {error.strerror}; mend that, or remove it") from error


def _stamp(status: os.stat_result, position: Position) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, position.offset


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status if stat.S_ISREG(status.st_mode) else None
    return None


def _listed(directory: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in directory.iterdir() if not path.name.endswith(_COMPRESSED)]
    return []


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"logs: {error.filename} cannot be read: {error.strerror}; mend that, or remove it") from error


def positions_from(values: Iterable[Mapping[str, Any]]) -> tuple[Position, ...]:
    """What `Position.as_dict` gave."""
    return tuple(Position(**value) for value in values)
