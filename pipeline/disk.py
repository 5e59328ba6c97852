"""Files in one directory of a local disk: appearing whole or not at all, and there after a power cut.

Errors of the system pass as they are; `pipeline.places` explains them.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What a file system that knows no locks answers to who asks for one."""


class DiskFiles:
    """What `pipeline.places.Place` does, on a directory that need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except FileNotFoundError:
            return []

    def folders(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except FileNotFoundError:
            return []

    def modified(self, name: str) -> float:
        return (self._directory / name).stat().st_mtime

    def sizes(self) -> dict[str, int]:
        files = (path for path in self._directory.rglob("*") if path.is_file())
        return {path.relative_to(self._directory).as_posix(): path.stat().st_size for path in files}

    def size(self, name: str) -> int | None:
        try:
            return (self._directory / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int, stop: int | None) -> bytes:
        with open(self._directory / name, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

    def map(self, name: str) -> mmap.mmap | None:
        with open(self._directory / name, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return None
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        with open(self._directory / name, "rb") as file:
            while chunk := file.read(size):
                yield chunk

    def publish(self, local: Path, name: str) -> None:
        make_directory(self._directory)
        fsync(local)
        try:
            local.replace(self._directory / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.scratch() as scratch:
                self.publish(Path(shutil.copyfile(local, scratch / name)), name)
            local.unlink()
        fsync(self._directory)

    def adopt(self, source: DiskFiles, name: str, new_name: str) -> None:
        with self.scratch() as scratch:
            try:
                os.link(source._directory / name, scratch / new_name)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, one without links, or a file of somebody else
                shutil.copyfile(source._directory / name, scratch / new_name)
            self.publish(scratch / new_name, new_name)

    def send(self, local: Path, name: str) -> None:
        with self.scratch() as scratch:
            copy = Path(shutil.copyfile(local, scratch / "copy"))
            make_directory((self._directory / name).parent)
            self.publish(copy, name)

    def write(self, name: str, data: bytes) -> None:
        with self.scratch() as scratch:
            (scratch / name).write_bytes(data)
            self.publish(scratch / name, name)

    def create(self, name: str, data: bytes) -> bool:
        with self.scratch() as scratch:
            (scratch / name).write_bytes(data)
            return link_if_absent(scratch / name, self._directory / name)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        return scratch_in(self._directory / ".scratch")

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        make_directory(self._directory)
        lock = FileLock(self._directory / ".lock", poll_interval=0.2)
        acquire(lock, waiting)
        try:
            yield
        finally:
            lock.release()


def acquire(lock: FileLock, waiting: Callable[[], None], patience_s: float = 0.0) -> None:
    """Take a lock; ``waiting`` is called once when somebody else has held it for ``patience_s``."""
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        waiting()
        lock.acquire()


@contextlib.contextmanager
def scratch_in(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A fresh directory below ``parent``, removed at the end; what killed processes left there is swept first."""
    make_directory(parent)
    sweep(parent)
    path = parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    lock_path = Path(f"{path}.lock")
    try:
        # The lock tells others that the directory is in use; the kernel drops it when the process dies.
        with FileLock(lock_path):
            try:
                path.mkdir()
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
    finally:
        lock_path.unlink(missing_ok=True)


def sweep(parent: Path) -> None:
    """Remove what killed processes left of `scratch_in`: directories whose lock nobody holds."""
    for lock_path in parent.glob("*.lock"):
        lock = FileLock(lock_path, timeout=0)
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory with its parents, durably."""
    if path.is_dir():
        return
    first = existing(path)
    path.mkdir(parents=True, exist_ok=True)
    for made in (path, *path.parents):
        fsync(made)
        if made == first:
            return


def existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def fsync(path: Path) -> None:
    """Write a file's content, or a directory's entries, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_if_absent(temporary: Path, path: Path) -> bool:
    """Give a file a second name unless that name is taken; true when it was free.

    A hard link appears with its whole content, where an exclusive open could be left torn by a crash.
    """
    fsync(temporary)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    fsync(path.parent)
    return True
