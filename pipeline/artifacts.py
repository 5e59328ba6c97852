"""Content-addressed artefacts: staged, committed with the manifest last, verified when opened.

An artefact is a directory ``artifacts/<stage>/<key>/`` of files and a ``manifest.json`` that lists every file
with size and sha256 and carries a digest of itself. It exists if and only if its manifest does, so it appears at
once or not at all.

The store is one small interface over local disks and object stores: stage, commit, open and verify, list,
put-if-absent, compare-and-swap. On a local disk a commit is one rename; what becomes of files at a URL is in
`pipeline.copies`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.claims import claim, sweep_claims
from pipeline.copies import MANIFEST, adopt, described, node_copy, parse_manifest, send
from pipeline.digests import digest_file, seal
from pipeline.disk import existing, fsync, link_if_absent, scratch_in, sweep
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.refusals import STORAGE, explained
from pipeline.surroundings import SCRATCH, node_scratch


@dataclass(frozen=True)
class Artifact:
    """A committed artefact."""

    stage: str
    key: str
    where: str
    """Directory with the files, or the artefact's URL, by which other nodes find it (`pipeline.storage.local_copy`)."""
    seconds: float
    """How long it took to make."""
    info: Mapping[str, Any]
    """What the stage noted about it (one line for the console, counts); never part of the key."""
    directory: str = ""
    """Where at a URL the files lie, from ``where``."""

    @property
    def files_at(self) -> str:
        """The directory or URL in which a person finds the files."""
        return "/".join(filter(None, (self.where, self.directory)))

    @functools.cached_property
    def path(self) -> Path:
        """Directory with the files on a disk that this process sees, verified; at a URL it is fetched when it is first
        asked for.

        Raises:
            ArtifactError: when it cannot be fetched, or is damaged.
        """
        return node_copy(self.where, full=True) if "://" in self.where else Path(self.where)


@dataclass
class Staging:
    """Where to write an artefact; it is committed when the ``stage`` block ends without error."""

    path: Path
    """A directory to fill."""
    info: dict[str, Any]
    where: str
    """Where workers on any node may put files of the artefact themselves: the directory, or a URL."""
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Bytes and sha256 of what workers have put at the URL, by its path from there; none on a local disk."""


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
        self._local = "://" not in root or root.startswith("file://")
        if self._local:
            self._base = str(Path(root.removeprefix("file://")).expanduser().absolute())
            self._staging_root = Path(self._at("staging"))
            with explained(f"storage {root!r} cannot be written"):
                if create:
                    for made in (Path(self._at("artifacts")), self._staging_root):
                        made.mkdir(parents=True, exist_ok=True)
                    sweep(self._staging_root)
                    sweep_claims(Path(self._at("claims")))
                else:
                    _require_writable(existing(Path(self._base)))
        else:
            self._base = Place(root, STORAGE).root
            self._staging_root = node_scratch(self._base) / "staging"
        self.root = root

    def _at(self, *parts: str) -> str:
        return "/".join((self._base, *parts))

    def _place(self, *parts: str) -> Place:
        return Place(self._at(*parts), STORAGE)

    def location(self, stage: str, key: str) -> str:
        """Where the artefact is, or would be: a directory or a URL."""
        return self._at("artifacts", stage, key)

    def free_bytes(self) -> int | None:
        """Free space where artefacts are written; None for a remote store."""
        return self._place().free_bytes()

    # -- artefacts -----------------------------------------------------------------------------------------

    def exists(self, stage: str, key: str) -> bool:
        """Whether the artefact is committed (nothing is verified)."""
        return self._place("artifacts", stage, key).size(MANIFEST) is not None

    def manifest(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """The manifest of a committed artefact (``seconds``, ``info``, ``files``), or None; files are not verified.

        Raises:
            ArtifactError: when the manifest cannot be read.
        """
        try:
            data = self._place("artifacts", stage, key).read(MANIFEST)
        except FileNotFoundError:
            return None
        return parse_manifest(data, self.location(stage, key))

    def list(self, stage: str) -> list[str]:
        """Keys of the committed artefacts of a stage."""
        return [key for key in self._place("artifacts", stage).folders() if self.exists(stage, key)]

    def open(self, stage: str, key: str) -> Artifact:
        """Verify every file and return the artefact: size and sha256 on a local disk. At a URL only the sizes are asked
        for; contents are verified when they are fetched (`Artifact.path`).

        Raises:
            KeyError: when there is no such artefact.
            ArtifactError: when a file is missing or its content differs from the manifest.
        """
        manifest = self.manifest(stage, key)
        if manifest is None:
            raise KeyError(f"{stage}/{key}")
        location = self.location(stage, key)
        faults = (
            self._local_faults(Path(location), manifest) if self._local else self._remote_faults(location, manifest)
        )
        for fault in faults:
            raise ArtifactError(f"artefact {location} is damaged: {fault}; remove the directory")
        return Artifact(stage, key, location, manifest["seconds"], manifest["info"], manifest.get("directory", ""))

    def _faults(self, location: str, manifest: Mapping[str, Any]) -> Iterator[str]:
        return self._local_faults(Path(location), manifest) if self._local else self._remote_faults(location, manifest)

    @staticmethod
    def _local_faults(directory: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
        for name, expected in manifest["files"].items():
            path = directory / name
            try:
                if path.stat().st_size != expected["bytes"] or digest_file(path) != expected["sha256"]:
                    yield f"{name} differs from its manifest"
            except FileNotFoundError:
                yield f"{name} is missing"
            except OSError as error:
                yield f"{name} cannot be read ({error.strerror})"

    @staticmethod
    def _remote_faults(location: str, manifest: Mapping[str, Any]) -> Iterator[str]:
        place = Place(location, STORAGE)
        # There is none in an artefact that was copied from a local store.
        found = (place.below(manifest["directory"]) if "directory" in manifest else place).sizes()
        for name, expected in manifest["files"].items():
            if name not in found:
                yield f"{name} is missing"
            elif found[name] != expected["bytes"]:
                yield f"{name} differs from its manifest"

    def discard(self, stage: str, key: str) -> None:
        """Remove an artefact (a damaged one, so that it can be made again); it disappears at once."""
        if self._local:
            with contextlib.suppress(FileNotFoundError):
                self._move_away(Path(self.location(stage, key)))
            return
        place = self._place("artifacts", stage, key)
        place.remove(MANIFEST)
        place.clear()

    def _move_away(self, directory: Path) -> None:
        with scratch_in(self._staging_root, f"discarded-{directory.name[:12]}-") as path:
            directory.rename(path)

    @contextlib.contextmanager
    def claim(self, stage: str, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the making of an artefact, so that jobs that need it at the same time make it once (`pipeline.claims`).

        On a remote store it is a lease, which is free half a minute after its holder was killed (`pipeline.lease`).

        Args:
            waiting: called once with who holds it, when somebody else does.
        """
        with contextlib.ExitStack() as stack:
            if self._local:
                with explained(f"storage {self.root!r} cannot be written"):
                    stack.enter_context(claim(Path(self._at("claims")), f"{stage}-{key}", waiting))
            else:
                place = self._place("claims", f"{stage}-{key}")
                since = "alive, or killed less than half a minute ago"
                stack.enter_context(place.lock(lambda: waiting(since)))
            yield

    @contextlib.contextmanager
    def stage(self, stage: str, key: str, description: Mapping[str, Any]) -> Iterator[Staging]:
        """A fresh directory to fill; leaving the block commits it, an exception removes it.

        A remote store has no rename: each writer has a directory of its own there, and the manifest says whose counts.

        When another job has committed the same key meanwhile, its artefact stays and this one is dropped:
        equal keys mean equal content.

        Args:
            description: what the key was made of, kept in the manifest for the reader.
        """
        started = time.monotonic()
        if not self._local:
            with self._remote_staging(stage, key) as staging:
                yield staging
                self._commit_remote(stage, key, staging, description, time.monotonic() - started)
            return
        what = f"storage {self.root!r} cannot be written"
        with explained(what, within=self._staging_root), scratch_in(self._staging_root, f"{stage}-{key[:12]}-") as path:
            staging = Staging(path, {}, str(path))
            yield staging
            with explained(what):
                self._commit(stage, key, staging, description, time.monotonic() - started)

    @contextlib.contextmanager
    def _remote_staging(self, stage: str, key: str) -> Iterator[Staging]:
        what, name = f"{self._staging_root} cannot be written", f"files-{uuid.uuid4().hex[:8]}"
        with explained(what, self._staging_root, SCRATCH), scratch_in(self._staging_root) as path:
            yield Staging(path, {}, f"{self.location(stage, key)}/{name}")

    def _commit_remote(
        self, stage: str, key: str, staging: Staging, description: Mapping[str, Any], seconds: float
    ) -> None:
        place, directory = self._place("artifacts", stage, key), staging.where.rpartition("/")[2]
        files = {**staging.sent, **send(staging.path, staging.where)}
        manifest = _manifest(stage, key, staging, description, seconds, files, directory)
        if not self.exists(stage, key):
            for fault in self._faults(self.location(stage, key), manifest):
                raise ArtifactError(f"{staging.where} was not written whole: {fault}; run the same command again")
        text = seal(manifest)
        if not place.create(MANIFEST, text) and not _reads(place, text):
            place.below(directory).clear()
            return
        if not staging.sent:
            adopt(staging.path, self.location(stage, key), text)
        for other in place.folders():  # of writers that were killed, or were too late
            if other != directory:
                place.below(other).clear()

    def _commit(self, stage: str, key: str, staging: Staging, description: Mapping[str, Any], seconds: float) -> None:
        files = sorted(path for path in staging.path.rglob("*") if path.is_file())
        text = seal(_manifest(stage, key, staging, description, seconds, described(staging.path)))
        (staging.path / MANIFEST).write_bytes(text)
        for path in (*files, staging.path / MANIFEST):
            fsync(path)
        for inside in (staging.path, *(path for path in staging.path.rglob("*") if path.is_dir())):
            fsync(inside)
        final = Path(self.location(stage, key))
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
        folder, _, last = name.rpartition("/")
        if not self._local:
            return self._place(folder).create(last, data)
        path = Path(self._at(name))
        with explained(f"storage {self.root!r} cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _put_if_absent(path, data)

    def read_pointer(self, name: str) -> tuple[int, bytes | None]:
        """Newest generation of a pointer and its content; (0, None) when it was never set."""
        place = self._place("pointers", name)
        newest = max((int(found) for found in place.names() if found.isdigit()), default=0)
        return (0, None) if newest == 0 else (newest, place.read(f"{newest:08d}"))

    def compare_and_swap(self, name: str, expected_generation: int, data: bytes) -> bool:
        """Move a pointer from ``expected_generation`` to the next one; false when somebody was faster.

        A generation is a file that is created exactly once, so that put-if-absent is all that is asked of
        the file system, and the history of the pointer stays readable.
        """
        if self.read_pointer(name)[0] != expected_generation:
            return False
        return self.put_if_absent(f"pointers/{name}/{expected_generation + 1:08d}", data)


def _reads(place: Place, text: bytes) -> bool:
    """Whether the manifest there is this one: a store that is asked again, since its first answer was lost, says that
    somebody else was faster."""
    try:
        return place.read(MANIFEST) == text
    except FileNotFoundError:
        return False


def _manifest(
    stage: str,
    key: str,
    staging: Staging,
    description: Mapping[str, Any],
    seconds: float,
    files: Mapping[str, Any],
    directory: str | None = None,
) -> dict[str, Any]:
    return {
        "stage": stage,
        "key": key,
        "made_from": description,
        "seconds": round(seconds, 3),
        "info": staging.info,
        **({} if directory is None else {"directory": directory}),
        "files": dict(files),
    }


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
