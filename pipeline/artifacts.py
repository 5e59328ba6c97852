"""Content-addressed artefacts: staged, committed with the manifest last, verified when opened.

An artefact is a directory ``artifacts/<stage>/<key>/`` of files and a ``manifest.json`` that lists every file
with size and sha256 and carries a digest of itself. It exists if and only if its manifest does, so it appears at
once or not at all.

The store is one small interface over fsspec, whose file systems reach local disks and object stores alike:
stage, commit, open and verify, list, put-if-absent, compare-and-swap. On a local disk a commit is one rename.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.claims import claim, sweep_claims
from pipeline.digests import digest_file, seal, unseal
from pipeline.disk import existing, fsync, link_if_absent, scratch_in, sweep
from pipeline.errors import ArtifactError
from pipeline.refusals import explained

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
        try:
            # Another job may write at any time: no listing is remembered.
            self._fs, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ArtifactError(f"storage {root!r} cannot be used: {error}; set --storage to a directory") from error
        self._base = base.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self.root = root
        if self._local:
            self._staging_root = Path(self._at("staging"))
        else:
            self._staging_root = Path(tempfile.mkdtemp(prefix="ra-dpo-"))
            atexit.register(shutil.rmtree, self._staging_root, ignore_errors=True)
        with explained(f"storage {root!r} cannot be written"):
            if create:
                self._fs.makedirs(self._at("artifacts"), exist_ok=True)
                if self._local:
                    self._staging_root.mkdir(parents=True, exist_ok=True)
                    sweep(self._staging_root)
                    sweep_claims(Path(self._at("claims")))
            elif self._local:
                _require_writable(existing(Path(self._base)))

    def _at(self, *parts: str) -> str:
        return "/".join((self._base, *parts))

    def location(self, stage: str, key: str) -> str:
        """Where the artefact is, or would be."""
        return self._at("artifacts", stage, key)

    def free_bytes(self) -> int | None:
        """Free space where artefacts are written; None for a remote store."""
        return shutil.disk_usage(existing(Path(self._base))).free if self._local else None

    # -- artefacts -----------------------------------------------------------------------------------------

    def exists(self, stage: str, key: str) -> bool:
        """Whether the artefact is committed (nothing is verified)."""
        return bool(self._fs.exists(f"{self.location(stage, key)}/{MANIFEST}"))

    def manifest(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """The manifest of a committed artefact (``seconds``, ``info``, ``files``), or None; files are not verified.

        Raises:
            ArtifactError: when the manifest cannot be read.
        """
        location = self.location(stage, key)
        try:
            data = self._fs.cat_file(f"{location}/{MANIFEST}")
        except FileNotFoundError:
            return None
        return _parse_manifest(data, location)

    def list(self, stage: str) -> list[str]:
        """Keys of the committed artefacts of a stage."""
        return sorted(key for key in self._names("artifacts", stage) if self.exists(stage, key))

    def _names(self, *parts: str) -> Iterator[str]:
        """What lies directly below a directory; nothing when there is no such directory."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._fs.ls(self._at(*parts), detail=False):
                yield path.rstrip("/").rsplit("/", 1)[1]

    def open(self, stage: str, key: str) -> Artifact:
        """Verify size and sha256 of every file and return the artefact.

        Raises:
            KeyError: when there is no such artefact.
            ArtifactError: when a file is missing or its content differs from the manifest.
        """
        manifest = self.manifest(stage, key)
        if manifest is None:
            raise KeyError(f"{stage}/{key}")
        location = self.location(stage, key)
        local = Path(location) if self._local else self._copy(location, manifest)
        for name, expected in manifest["files"].items():
            path = local / name
            try:
                same = path.stat().st_size == expected["bytes"] and digest_file(path) == expected["sha256"]
            except OSError as error:
                why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
                raise ArtifactError(f"artefact {location} is damaged: {name} {why}; remove the directory") from error
            if not same:
                raise ArtifactError(
                    f"artefact {location} is damaged: {name} differs from its manifest; remove the directory"
                )
        return Artifact(stage, key, local, manifest["seconds"], manifest["info"])

    def _copy(self, location: str, manifest: Mapping[str, Any]) -> Path:
        """A fresh local copy of a remote artefact's files."""
        local = self._staging_root / f"open-{uuid.uuid4().hex}"
        local.mkdir()
        directory = manifest.get("directory", "")  # none in an artefact that was copied from a local store
        for name in manifest["files"]:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._fs.get_file("/".join(filter(None, (location, directory, name))), str(local / name))
        return local

    def discard(self, stage: str, key: str) -> None:
        """Remove an artefact (a damaged one, so that it can be made again); it disappears at once."""
        location = self.location(stage, key)
        with contextlib.suppress(FileNotFoundError):
            if self._local:
                self._move_away(Path(location))
            else:
                self._fs.rm(f"{location}/{MANIFEST}")
                self._fs.rm(location, recursive=True)

    def _move_away(self, directory: Path) -> None:
        with scratch_in(self._staging_root, f"discarded-{directory.name[:12]}-") as path:
            directory.rename(path)

    @contextlib.contextmanager
    def claim(self, stage: str, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the making of an artefact, so that jobs that need it at the same time make it once (`pipeline.claims`).

        On a remote store there is nothing to hold, and each job makes its own.

        Args:
            waiting: called once with who holds it, when somebody else does.
        """
        with contextlib.ExitStack() as stack:
            if self._local:
                with explained(f"storage {self.root!r} cannot be written"):
                    stack.enter_context(claim(Path(self._at("claims")), f"{stage}-{key}", waiting))
            yield

    @contextlib.contextmanager
    def stage(self, stage: str, key: str, description: Mapping[str, Any]) -> Iterator[Staging]:
        """A fresh directory to fill; leaving the block commits it, an exception removes it.

        When another job has committed the same key meanwhile, its artefact stays and this one is dropped:
        equal keys mean equal content.

        Args:
            description: what the key was made of, kept in the manifest for the reader.
        """
        started = time.monotonic()
        what = f"storage {self.root!r} cannot be written"
        with explained(what, within=self._staging_root), scratch_in(self._staging_root, f"{stage}-{key[:12]}-") as path:
            staging = Staging(path, {})
            yield staging
            with explained(what):
                self._commit(stage, key, staging, description, time.monotonic() - started)

    def _commit(self, stage: str, key: str, staging: Staging, description: Mapping[str, Any], seconds: float) -> None:
        files = sorted(path for path in staging.path.rglob("*") if path.is_file())
        # A remote store has no rename: each writer has a directory of its own, and the manifest says whose counts.
        directory = f"files-{uuid.uuid4().hex[:8]}"
        manifest = {
            "stage": stage,
            "key": key,
            "made_from": description,
            "seconds": round(seconds, 3),
            "info": staging.info,
            **({} if self._local else {"directory": directory}),
            "files": {
                str(path.relative_to(staging.path)): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
                for path in files
            },
        }
        text = seal(manifest)
        location = self.location(stage, key)
        if not self._local:
            for path in files:
                target = f"{location}/{directory}/{path.relative_to(staging.path)}"
                self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                self._fs.put_file(str(path), target)
            if not self.put_if_absent(f"artifacts/{stage}/{key}/{MANIFEST}", text) and files:
                self._fs.rm(f"{location}/{directory}", recursive=True)
            return
        (staging.path / MANIFEST).write_bytes(text)
        for path in (*files, staging.path / MANIFEST):
            fsync(path)
        for inside in (staging.path, *(path for path in staging.path.rglob("*") if path.is_dir())):
            fsync(inside)
        final = Path(location)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._rename(staging.path, final)
        except FileExistsError:
            if self.exists(stage, key):
                return
            self._move_away(final)  # it lost its manifest, so it is no artefact
            self._rename(staging.path, final)
        fsync(final.parent)
        fsync(final.parent.parent)

    @staticmethod
    def _rename(source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
            raise

    # -- small objects -------------------------------------------------------------------------------------

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write ``data`` under ``name`` unless it is there already; true when this call wrote it. Atomic."""
        path = self._at(name)
        with explained(f"storage {self.root!r} cannot be written"):
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            if self._local:
                return _put_if_absent(Path(path), data)
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True

    def read_pointer(self, name: str) -> tuple[int, bytes | None]:
        """Newest generation of a pointer and its content; (0, None) when it was never set."""
        newest = max((int(found) for found in self._names("pointers", name) if found.isdigit()), default=0)
        if newest == 0:
            return 0, None
        return newest, self._fs.cat_file(self._at("pointers", name, f"{newest:08d}"))

    def compare_and_swap(self, name: str, expected_generation: int, data: bytes) -> bool:
        """Move a pointer from ``expected_generation`` to the next one; false when somebody was faster.

        A generation is a file that is created exactly once, so that put-if-absent is all that is asked of
        the file system, and the history of the pointer stays readable.
        """
        if self.read_pointer(name)[0] != expected_generation:
            return False
        return self.put_if_absent(f"pointers/{name}/{expected_generation + 1:08d}", data)


def _parse_manifest(data: bytes, location: str) -> Mapping[str, Any]:
    try:
        manifest = unseal(data)
        manifest["seconds"], manifest["info"]
        for expected in manifest["files"].values():
            expected["bytes"], expected["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"artefact {location} is damaged: {MANIFEST} cannot be read; remove the directory"
        ) from error
    return manifest


def _require_writable(place: Path) -> None:
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _put_if_absent(path: Path, data: bytes) -> bool:
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(data)
        return link_if_absent(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
