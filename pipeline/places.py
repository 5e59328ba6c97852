"""Where the reference cache and the registry lie: one small interface over local disks and object stores.

What is asked of a store is little: whole objects appear at once, ranges can be read, names listed, and an object
created only if it is absent. Files are written once and named by their content, so that a second writer does no harm.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.disk import DiskFiles, existing
from pipeline.errors import ArtifactError
from pipeline.lease import STALE_S, Lease
from pipeline.objects import ObjectFiles
from pipeline.refusals import explained, local_refusals, remote_refusals

OPTION = "--reference.root"
"""The option that chooses another place, where the caller names no other."""


class Place:
    """A directory of immutable files and a few small documents, local or on any file system fsspec reaches.

    Names that begin with a dot are the place's own (temporary files, the lock). Whatever a file system refuses
    comes out as an `ArtifactError` that names the root and the remedy; only an absent file is FileNotFoundError.

    Args:
        root: a path, or a URL such as s3://bucket/prefix. Nothing is created.
        option: the option that chooses another place, for messages.

    Raises:
        ArtifactError: for a protocol nobody knows, or one whose package is not installed.
    """

    root: str
    """As given; a path is made absolute."""
    is_local: bool
    stale_s: float = STALE_S
    """Seconds after which the lock of a process that died is free on a remote place; alike for all who use it."""

    def __init__(self, root: str, option: str = OPTION) -> None:
        self._option = option
        self.is_local = "://" not in root or root.startswith("file://")
        self._files: DiskFiles | ObjectFiles
        if self.is_local:
            self._directory = Path(root.removeprefix("file://")).expanduser().absolute()
            self.root = str(self._directory)
            self._files = DiskFiles(self._directory)
            return
        self.root = root.rstrip("/")
        try:
            self._files = ObjectFiles(root)
        except (ValueError, ImportError) as error:
            remedy = "pip install the package it names" if isinstance(error, ImportError) else "correct it"
            raise ArtifactError(
                f"{root!r} cannot be used: {error}; {remedy}, or set {option} to a directory"
            ) from error

    def __repr__(self) -> str:
        return f"Place({self.root!r})"

    def below(self, *parts: str) -> Place:
        """A directory below this one."""
        return Place("/".join((self.root, *parts)), self._option)

    def names(self) -> list[str]:
        """Names of the files directly below, sorted; empty if the directory is not there."""
        with self._explained("listed"):
            return self._files.names()

    def folders(self) -> list[str]:
        """Names of the directories directly below, sorted; empty if the directory is not there."""
        with self._explained("listed"):
            return self._files.folders()

    def modified(self, name: str) -> float:
        """When a file was written, in seconds since the epoch by the clock of the disk or the store.

        Raises:
            FileNotFoundError: when it is absent.
        """
        with self._explained("read"):
            return self._files.modified(name)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, at any depth, by its path from here; one listing of a store."""
        with self._explained("listed"):
            return self._files.sizes()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is absent."""
        with self._explained("read"):
            return self._files.size(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file's bytes from ``start`` up to ``stop`` (its end), as far as there are any; one request of a store.

        Raises:
            FileNotFoundError: when it is absent.
        """
        with self._explained("read"):
            return self._files.read(name, start, stop)

    def map(self, name: str) -> mmap.mmap | None:
        """A read-only memory map of a local file; None on a remote place, and for an empty file.

        Raises:
            FileNotFoundError: when it is absent.
        """
        if not isinstance(self._files, DiskFiles):
            return None
        with self._explained("read"):
            return self._files.map(name)

    def chunks(self, name: str, size: int = 1 << 20) -> Iterator[bytes]:
        """A file's bytes in order, ``size`` at a time (the last may be fewer), never more than a few in memory.

        Raises:
            FileNotFoundError: when it is absent.
        """
        chunks = self._files.chunks(name, size)
        while True:
            with self._explained("read"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def publish(self, local: Path, name: str) -> None:
        """Make ``local`` the file ``name``, in place of one that is there. It appears whole, when it is safe on the
        disk or in the store; ``local`` is consumed (moved, where it lies in the place's `scratch`)."""
        with self._explained("written"):
            self._files.publish(local, name)

    def adopt(self, source: Place, name: str, new_name: str) -> None:
        """Make the file ``name`` of a place of the same kind the file ``new_name`` of this one, as `publish` does, and
        without its bytes passing through: a second name for them on a disk (a copy where it knows no links), a copy
        made by the store.

        Raises:
            FileNotFoundError: when it is absent.
        """
        with self._explained("written to"):
            if isinstance(self._files, DiskFiles) and isinstance(source._files, DiskFiles):
                return self._files.adopt(source._files, name, new_name)
            assert isinstance(self._files, ObjectFiles)
            assert isinstance(source._files, ObjectFiles)
            self._files.adopt(source._files, name, new_name)

    def send(self, local: Path, name: str) -> None:
        """As `publish`, but ``local`` stays, and ``name`` may be a path below this place."""
        with self._explained("written"):
            self._files.send(local, name)

    def write(self, name: str, data: bytes) -> None:
        """Make ``data`` the small file ``name``, as `publish` does."""
        with self._explained("written"):
            self._files.write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, unless there is such a file already; true when this call made it."""
        with self._explained("written"):
            return self._files.create(name, data)

    def remove(self, name: str) -> None:
        """Remove a file; an absent one is fine."""
        with self._explained("written"):
            self._files.remove(name)

    def clear(self) -> None:
        """Remove the directory with everything below it; an absent one is fine."""
        with self._explained("written"):
            self._files.clear()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh directory for temporary files: on the same disk when the place is local, else on the one for
        temporary files. It is removed at the end, or by somebody's next use when this process is killed."""
        what = (
            f"{self.root} cannot be written" if self.is_local else f"temporary files for {self.root} cannot be written"
        )
        option = self._option if self.is_local else "TMPDIR"
        with contextlib.ExitStack() as stack:
            with local_refusals(what, option):
                path = stack.enter_context(self._files.scratch())
            # From here on it is the caller's block: only what concerns this directory is explained.
            stack.enter_context(explained(what, path, option))
            yield path

    def free_bytes(self) -> int | None:
        """Free space on the disk; None for a remote place."""
        if not self.is_local:
            return None
        with self._explained("read"):
            return shutil.disk_usage(existing(self._directory)).free

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the place exclusively among all processes that ask; ``waiting`` is called once when it is held already.

        The lock of a process that dies is free at once on a local disk, and after `stale_s` on a remote place (see
        `pipeline.lease`). It saves work and protects nothing: what is written must be right without it.
        """
        lock = self._files.lock(waiting) if isinstance(self._files, DiskFiles) else self._lease(waiting)
        with contextlib.ExitStack() as stack:
            with self._explained("locked"):
                stack.enter_context(lock)
            yield

    def _lease(self, waiting: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
        return Lease(self.below(".lock"), stale_s=self.stale_s).held(waiting)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        refusals = local_refusals if self.is_local else remote_refusals
        with refusals(f"{self.root} cannot be {what}", self._option):
            try:
                yield
            except FileNotFoundError as error:
                if self.is_local and what in (
                    "written",
                    "locked",
                ):  # not a file that is asked for: its directory cannot be made
                    raise ArtifactError(
                        f"{self.root} cannot be {what}: {error.strerror or error}; set {self._option} to another place"
                    ) from error
                raise
