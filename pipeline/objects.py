"""Files below one prefix of an object store, or of any other remote file system that fsspec reaches.

Errors pass as the client raises them; `pipeline.places` explains them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from pipeline.disk import scratch_in
from pipeline.refusals import bucket_is_missing, codes

BLOCK_BYTES = 8 << 20
"""One request of a stream: large enough that the way to the store does not count, small enough for memory."""

S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 2}}
"""Seconds, and requests in all: a store that is not there is known to be so at once, one that hangs in a minute."""

S3_ATTEMPTS = 2
"""How often s3fs repeats what botocore has given up on (it is what sees an answer that broke off)."""

TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
"""How S3 says that an object to be created is there, or is being created by somebody else at this moment."""


class ObjectFiles:
    """What `pipeline.places.Place` does, below a URL.

    Raises:
        ValueError, ImportError: for a protocol that fsspec does not know, or whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        protocol = fsspec.utils.get_protocol(url)
        s3 = protocol in ("s3", "s3a")
        # Another job may write at any time: no listing is remembered.
        self._fs, base = fsspec.core.url_to_fs(url, use_listings_cache=False, **(_s3_options() if s3 else {}))
        if s3:
            self._fs.retries = S3_ATTEMPTS
        self._base = base.rstrip("/")
        if not self._base:
            raise ValueError(f"{protocol}:// names no bucket or directory")

    def _at(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _entries(self) -> list[dict[str, Any]]:
        """What lies directly below; nothing when there is no such prefix."""
        try:
            return list(self._fs.ls(self._base, detail=True))
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise
            return []

    def names(self) -> list[str]:
        found = [(entry["name"].rstrip("/"), entry) for entry in self._entries() if entry["type"] == "file"]
        below = [path.rsplit("/", 1) for path, _ in found if path.strip("/") != self._base.strip("/")]
        return sorted(name for _, name in below if not name.startswith("."))

    def folders(self) -> list[str]:
        folders = (entry["name"] for entry in self._entries() if entry["type"] == "directory")
        names = [name.rstrip("/").rsplit("/", 1)[-1] for name in folders]
        return sorted(name for name in names if not name.startswith("."))

    def modified(self, name: str) -> float:
        return float(self._fs.modified(self._at(name)).timestamp())

    def sizes(self) -> dict[str, int]:
        try:
            found = self._fs.find(self._base, detail=True)
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise
            return {}
        base = f"{self._base.strip('/')}/"
        below = ((path.lstrip("/"), entry) for path, entry in found.items())  # an empty directory names itself
        return {path.removeprefix(base): int(entry["size"]) for path, entry in below if path.startswith(base)}

    def size(self, name: str) -> int | None:
        try:
            return int(self._fs.info(self._at(name))["size"])
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise
            return None

    def read(self, name: str, start: int, stop: int | None) -> bytes:
        if start == 0 and stop is None:
            return bytes(self._fs.cat_file(self._at(name)))
        if stop is not None and stop <= start:
            return b""
        try:
            return bytes(self._fs.cat_file(self._at(name), start=start, end=stop))
        except OSError as error:
            if codes(error) & {"InvalidRange", "416"}:  # begins behind the end, where a file on a disk has nothing
                return b""
            raise

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        with self._fs.open(self._at(name), "rb", block_size=max(size, BLOCK_BYTES)) as file:
            while chunk := file.read(size):
                yield chunk

    def publish(self, local: Path, name: str) -> None:
        self.send(local, name)
        local.unlink()

    def send(self, local: Path, name: str) -> None:
        try:
            self._fs.put_file(str(local), self._at(name))
        except FileNotFoundError as error:
            if bucket_is_missing(error) or not local.is_file():
                raise
            # A file system with directories, as in `_put`.
            self._fs.makedirs(self._at(name).rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(local), self._at(name))

    def adopt(self, source: ObjectFiles, name: str, new_name: str) -> None:
        self._fs.cp_file(source._at(name), self._at(new_name))

    def write(self, name: str, data: bytes) -> None:
        self._put(name, data, "overwrite")

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._put(name, data, "create")
        except FileExistsError:
            return False
        except OSError as error:
            if codes(error) & TAKEN:
                return False
            raise
        return True

    def _put(self, name: str, data: bytes, mode: str) -> None:
        try:
            self._fs.pipe_file(self._at(name), data, mode=mode)
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise
            # A file system with directories. Never before it is needed: on S3 this would make the bucket.
            self._fs.makedirs(self._base, exist_ok=True)
            self._fs.pipe_file(self._at(name), data, mode=mode)

    def remove(self, name: str) -> None:
        try:
            self._fs.rm_file(self._at(name))
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise

    def clear(self) -> None:
        try:
            self._fs.rm(self._base, recursive=True)
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        return scratch_in(own_temporary_directory())


def own_temporary_directory() -> Path:
    """A directory of this user's for temporary files. Its name is known to everybody, so it is used only when nobody
    else has made it first."""
    path = Path(tempfile.gettempdir()) / f"ra-dpo-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    return path


def _s3_options() -> dict[str, Any]:
    """Limits of time, under what the user has put into fsspec's own configuration."""
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**S3_CLIENT, **own}}
