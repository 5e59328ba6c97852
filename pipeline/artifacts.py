"""Content-addressed artefacts: staged, committed with the manifest last, verified when opened.

An artefact is a directory ``artifacts/<stage>/<key>/`` of files and a ``manifest.json`` that lists every file
with size and sha256. It exists if and only if its manifest does, so it appears at once or not at all.

The store is one small interface over fsspec, whose file systems reach local disks and object stores alike:
stage, commit, open and verify, list, put-if-absent, compare-and-swap. On a local disk a commit is one rename.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from pipeline.digests import digest_file
from pipeline.errors import ArtifactError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A committed artefact whose files have been verified."""

    stage: str
    key: str
    path: Path
    """Directory with the files, on a local (or shared) disk."""
    seconds: float
    """How long it took to make."""
    info: Mapping[str, Any]
    """What the stage noted about it (one line for the console, counts); never part of the key."""


@dataclass
class Staging:
    """A directory to write an artefact into; it is committed when the ``stage`` block ends without error."""

    path: Path
    info: dict[str, Any]


class Store:
    """Artefacts and small pointers under one root.

    Args:
        root: a directory, or a URL that fsspec understands.
        create: make the root's directories, and sweep what killed jobs left there. Without it nothing is written,
            and all that works is to look (`exists`, `list`, `manifest`, `open`, `free_bytes`).

    Raises:
        ArtifactError: when the root cannot be written (or, without ``create``, could not be).
    """

    def __init__(self, root: str, *, create: bool = True) -> None:
        self._fs, base = fsspec.core.url_to_fs(root)
        self._base = base.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self.root = root
        self._staging_root = Path(self._at("staging")) if self._local else Path(tempfile.mkdtemp(prefix="ra-dpo-"))
        with _explained(f"storage {root!r} cannot be written"):
            if create:
                self._fs.makedirs(self._at("artifacts"), exist_ok=True)
                if self._local:
                    self._staging_root.mkdir(parents=True, exist_ok=True)
                    self._sweep_staging()
            elif self._local:
                _require_writable(_existing(Path(self._base)))

    def _at(self, *parts: str) -> str:
        return "/".join((self._base, *parts))

    def location(self, stage: str, key: str) -> str:
        """Where the artefact is, or would be."""
        return self._at("artifacts", stage, key)

    def free_bytes(self) -> int | None:
        """Free space where artefacts are written; None for a remote store."""
        return shutil.disk_usage(_existing(Path(self._base))).free if self._local else None

    # -- artefacts -----------------------------------------------------------------------------------------

    def exists(self, stage: str, key: str) -> bool:
        """Whether the artefact is committed (nothing is verified)."""
        return bool(self._fs.exists(f"{self.location(stage, key)}/{MANIFEST}"))

    def manifest(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """The manifest of a committed artefact (``seconds``, ``info``, ``files``), or None; files are not verified.

        Raises:
            ArtifactError: when the manifest cannot be read.
        """
        if not self.exists(stage, key):
            return None
        location = self.location(stage, key)
        return _parse_manifest(self._fs.cat_file(f"{location}/{MANIFEST}"), location)

    def list(self, stage: str) -> list[str]:
        """Keys of the committed artefacts of a stage."""
        found = self._fs.glob(self._at("artifacts", stage, "*", MANIFEST))
        return sorted(path.rsplit("/", 2)[1] for path in found)

    def open(self, stage: str, key: str) -> Artifact:
        """Verify size and sha256 of every file and return the artefact.

        Raises:
            KeyError: when there is no such artefact.
            ArtifactError: when a file is missing or its content differs from the manifest.
        """
        if not self.exists(stage, key):
            raise KeyError(f"{stage}/{key}")
        location = self.location(stage, key)
        local = Path(location)
        if not self._local:
            local = self._staging_root / f"open-{stage}-{key}"
            if not local.exists():
                self._fs.get(location, str(local), recursive=True)
        manifest = _read_manifest(local)
        for name, expected in manifest["files"].items():
            path = local / name
            if not path.is_file():
                raise ArtifactError(f"artefact {location} is damaged: {name} is missing; remove the directory")
            if path.stat().st_size != expected["bytes"] or digest_file(path) != expected["sha256"]:
                raise ArtifactError(
                    f"artefact {location} is damaged: {name} differs from its manifest; remove the directory"
                )
        return Artifact(stage, key, local, manifest["seconds"], manifest["info"])

    def discard(self, stage: str, key: str) -> None:
        """Remove an artefact (a damaged one, so that it can be made again); the manifest goes first."""
        location = self.location(stage, key)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{location}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(location, recursive=True)

    @contextlib.contextmanager
    def stage(self, stage: str, key: str, description: Mapping[str, Any]) -> Iterator[Staging]:
        """A fresh directory to fill; leaving the block commits it, an exception removes it.

        When another job has committed the same key meanwhile, its artefact stays and this one is dropped:
        equal keys mean equal content.

        Args:
            description: what the key was made of, kept in the manifest for the reader.
        """
        name = f"{stage}-{key[:12]}-{uuid.uuid4().hex[:8]}"
        path = self._staging_root / name
        started = time.monotonic()
        # The lock tells a later job that this directory is in use; the kernel drops it when the process dies.
        with FileLock(f"{path}.lock"):
            try:
                with _explained(f"storage {self.root!r} cannot be written"):
                    path.mkdir(parents=True)
                    staging = Staging(path, {})
                    yield staging
                    seconds = time.monotonic() - started
                    self._commit(stage, key, staging, description, seconds)
            finally:
                shutil.rmtree(path, ignore_errors=True)
        Path(f"{path}.lock").unlink(missing_ok=True)

    def _commit(self, stage: str, key: str, staging: Staging, description: Mapping[str, Any], seconds: float) -> None:
        files = sorted(path for path in staging.path.rglob("*") if path.is_file())
        manifest = {
            "stage": stage,
            "key": key,
            "made_from": description,
            "seconds": round(seconds, 3),
            "info": staging.info,
            "files": {
                str(path.relative_to(staging.path)): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
                for path in files
            },
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
        location = self.location(stage, key)
        if not self._local:
            for path in files:
                self._fs.put_file(str(path), f"{location}/{path.relative_to(staging.path)}")
            self.put_if_absent(f"artifacts/{stage}/{key}/{MANIFEST}", text)
            return
        (staging.path / MANIFEST).write_bytes(text)
        for path in (*files, staging.path / MANIFEST):
            _fsync(path)
        for directory in {path.parent for path in files} | {staging.path}:
            _fsync(directory)
        final = Path(location)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not self.exists(stage, key):
            shutil.rmtree(final)
        try:
            staging.path.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _fsync(final.parent)

    def _sweep_staging(self) -> None:
        """Remove what killed jobs left behind: staging directories whose lock nobody holds."""
        for lock_path in self._staging_root.glob("*.lock"):
            lock = FileLock(lock_path, timeout=0)
            with contextlib.suppress(Timeout), lock:
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)

    # -- small objects -------------------------------------------------------------------------------------

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write ``data`` under ``name`` unless it is there already; true when this call wrote it. Atomic."""
        path = self._at(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if not self._local:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        # A hard link appears with its whole content, where an exclusive open could be left torn by a crash.
        temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_bytes(data)
        _fsync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _fsync(Path(path).parent)
        return True

    def read_pointer(self, name: str) -> tuple[int, bytes | None]:
        """Newest generation of a pointer and its content; (0, None) when it was never set."""
        found = self._fs.glob(self._at("pointers", name, "[0-9]*"))
        generations = sorted(int(path.rsplit("/", 1)[1]) for path in found if path.rsplit("/", 1)[1].isdigit())
        if not generations:
            return 0, None
        return generations[-1], self._fs.cat_file(self._at("pointers", name, f"{generations[-1]:08d}"))

    def compare_and_swap(self, name: str, expected_generation: int, data: bytes) -> bool:
        """Move a pointer from ``expected_generation`` to the next one; false when somebody was faster.

        A generation is a file that is created exactly once, so that put-if-absent is all that is asked of
        the file system, and the history of the pointer stays readable.
        """
        if self.read_pointer(name)[0] != expected_generation:
            return False
        return self.put_if_absent(f"pointers/{name}/{expected_generation + 1:08d}", data)


def _read_manifest(directory: Path) -> Mapping[str, Any]:
    return _parse_manifest((directory / MANIFEST).read_bytes(), str(directory))


def _parse_manifest(data: bytes, location: str) -> Mapping[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(data)
        manifest["files"], manifest["seconds"], manifest["info"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"artefact {location} is damaged: {MANIFEST} cannot be read; remove the directory"
        ) from error
    return manifest


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _require_writable(place: Path) -> None:
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into one message with a remedy."""
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                f"{what}: the disk is full; free some space or set --storage to another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ArtifactError(f"{what}: {error.strerror}; set --storage to a directory you may write") from error
        raise
