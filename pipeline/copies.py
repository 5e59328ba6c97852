"""Artefacts on an object store, and this node's copies of them.

An artefact at a URL is a manifest and, in a directory that its writer chose, the files that the manifest names::

    <root>/artifacts/<stage>/<key>/manifest.json
    <root>/artifacts/<stage>/<key>/files-1a2b3c4d/...

Who reads it reads a copy on the node's own disk. A copy is made once a node, however many processes want it: under a
lock, every byte verified against the manifest on its way, appearing by one rename. Its directory is named by the
manifest's content, so that an artefact that was made again is never taken for what it was before::

    <scratch>/<digest of root>/artifacts/<stage>/<key>-<digest of manifest>/      the files
    <scratch>/<digest of root>/artifacts/<stage>/<key>-<digest of manifest>.json  their times when they were verified

A file whose size or time of change is another than when it was verified is verified again, and a damaged copy is made
again. That finds what happens to files (a full disk, a careless hand) for the price of a stat; the job itself, which
reads a copy to decide by it, reads every byte. Copies that nobody has asked for in `KEPT_S` seconds are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.digests import digest_file, unseal
from pipeline.disk import make_directory, scratch_in
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.refusals import STORAGE, local_refusals
from pipeline.surroundings import SCRATCH, node_scratch

MANIFEST = "manifest.json"
KEPT_S = 30 * 24 * 3600
_STREAMS = 4
"""Files on their way at one time."""
_CHUNK_BYTES = 8 << 20
_WHERE = re.compile(r"(?P<artifact>(?P<root>.+)/artifacts/(?P<stage>[^/]+)/(?P<key>[^/]+))(?:/(?P<inside>.*))?")


@dataclass(frozen=True)
class RemotePath:
    """What the URL of an artefact, or of a directory in it, says."""

    artifact: str
    root: str
    stage: str
    key: str
    inside: str


def remote_path(where: str) -> RemotePath:
    """Take the URL of (a directory in) an artefact apart.

    Raises:
        ArtifactError: for another URL.
    """
    found = _WHERE.fullmatch(where.rstrip("/"))
    if found is None:
        raise ArtifactError(f"{where!r} is not the URL of an artefact (<storage>/artifacts/<stage>/<key>)")
    return RemotePath(**{**found.groupdict(), "inside": found["inside"] or ""})


def parse_manifest(data: bytes, location: str) -> Mapping[str, Any]:
    """What the bytes of a manifest say. Its names must not lead out of the artefact: nodes write files by them, and a
    storage may be written by others.

    Raises:
        ArtifactError: when they are not those of a manifest.
    """
    try:
        manifest = unseal(data)
        manifest["seconds"], manifest["info"]
        for name, expected in manifest["files"].items():
            expected["bytes"], expected["sha256"]
            require_inside(name)
        if "directory" in manifest:
            require_inside(manifest["directory"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"artefact {location} is damaged: {MANIFEST} cannot be read; remove the directory"
        ) from error
    return manifest


def require_inside(name: str) -> None:
    """Refuse the path of a file that leads out of the directory it starts from.

    Raises:
        ValueError: naming it.
    """
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} leads out of its directory")


def described(directory: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file below a directory, by its path from there, as a manifest has them."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": digest_file(path)} for path in files
    }


def send(directory: Path, where: str) -> dict[str, dict[str, Any]]:
    """Put the files below a directory to a URL and return what a manifest says of them; they stay."""
    place, files = Place(where, STORAGE), described(directory)
    with ThreadPoolExecutor(_STREAMS) as pool:
        for sent in [pool.submit(place.send, directory / name, name) for name in files]:
            sent.result()
    return files


def node_copy(where: str, *, full: bool) -> Path:
    """This node's verified copy of the artefact at a URL, made if it is not there.

    Args:
        full: read every byte of a copy that is there already.

    Raises:
        ArtifactError: when the artefact is gone or damaged, or the copy cannot be made.
    """
    place = Place(where, STORAGE)
    try:
        text = place.read(MANIFEST)
    except FileNotFoundError:
        raise ArtifactError(f"artefact {where} is gone; run the same command again to make it anew") from None
    manifest = parse_manifest(text, where)
    directory = _directory(where, text)
    with _refusals(directory), _locked(directory):
        if not _is_whole(directory, manifest["files"], full=full):
            _remove(directory)
            # Not beside the copies, whose locks would be taken for those of what killed processes left.
            with scratch_in(directory.parent.parent / ".fetching") as fresh:
                (fresh / "files").mkdir()
                _fetch(place.below(manifest["directory"]) if "directory" in manifest else place, manifest, fresh)
                (fresh / "files").rename(directory)
            _note(directory, manifest["files"])
        os.utime(_note_of(directory))
    _sweep(directory.parent.parent)
    return directory


def adopt(files: Path, where: str, manifest_text: bytes) -> None:
    """Make a directory, whose files the manifest describes, this node's copy of an artefact that was just committed."""
    directory = _directory(where, manifest_text)
    with _refusals(directory), _locked(directory):
        if not directory.exists():
            files.rename(directory)
            _note(directory, parse_manifest(manifest_text, where)["files"])


def _directory(where: str, manifest_text: bytes) -> Path:
    at = remote_path(where)
    name = f"{at.key}-{hashlib.sha256(manifest_text).hexdigest()[:12]}"
    return node_scratch(at.root) / "artifacts" / at.stage / name


def _fetch(place: Place, manifest: Mapping[str, Any], fresh: Path) -> None:
    def one(name: str) -> None:
        path, expected, digest = fresh / "files" / name, manifest["files"][name], hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, _, last = name.rpartition("/")
        try:
            with path.open("wb") as file:
                for chunk in (place.below(folder) if folder else place).chunks(last, _CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        except FileNotFoundError as error:
            raise ArtifactError(f"artefact {place.root} is damaged: {name} is missing; remove the directory") from error
        if path.stat().st_size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
            raise ArtifactError(
                f"artefact {place.root} is damaged: {name} differs from its manifest; remove the directory"
            )

    with ThreadPoolExecutor(_STREAMS) as pool:
        for fetched in [pool.submit(one, name) for name in manifest["files"]]:
            fetched.result()


def _is_whole(directory: Path, files: Mapping[str, Any], *, full: bool) -> bool:
    try:
        times = json.loads(_note_of(directory).read_bytes())
        for name, expected in files.items():
            found = (directory / name).stat()
            if found.st_size != expected["bytes"]:
                return False
            if (full or times.get(name) != found.st_mtime_ns) and digest_file(directory / name) != expected["sha256"]:
                return False
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _note(directory: Path, files: Mapping[str, Any]) -> None:
    times = {name: (directory / name).stat().st_mtime_ns for name in files}
    _note_of(directory).write_text(json.dumps(times))


def _note_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.json")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    make_directory(directory.parent)
    with FileLock(f"{directory}.lock"):
        yield


@contextlib.contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    with local_refusals(f"the copies of artefacts in {directory.parent} cannot be written", SCRATCH):
        yield


def _remove(directory: Path) -> None:
    _note_of(directory).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _sweep(copies: Path) -> None:
    """Remove what nobody has asked for in a long time."""
    for note in copies.glob("*/*.json"):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - note.stat().st_mtime > KEPT_S:
                with FileLock(f"{note.with_suffix('')}.lock", timeout=0) as lock:
                    _remove(note.with_suffix(""))
                    Path(lock.lock_file).unlink(missing_ok=True)
