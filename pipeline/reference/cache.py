"""The directory of a reference cache: shards that appear whole, and a manifest when all are there.

::

    references/<key>/
      description.json                    what this will hold, written first
      plan.json                           which file holds which rows, and where those of other caches come from
      train-00000-<digest>.safetensors    a shard, named by the first 16 digits of its sha256 ...
      head-<digest>.safetensors           ... and so is the head
      manifest.json                       written last: every file with size and sha256, the full key, statistics

A file that does not agree with its own name is damaged, so shards need no record beside them: a pass that was
killed goes on from the names it finds, on a disk and on an object store alike. The documents carry a digest of
themselves; readers need the manifest alone. Nothing here knows Ray; a cache can be read without it.

A file may belong to several caches: on a disk it is one file with several names, never written again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.digests import digest_file, seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.plan import HEAD, Part, Piece, Plan
from pipeline.reference.version import FORMAT, READABLE

DESCRIPTION = "description.json"
MANIFEST = "manifest.json"
PLAN = "plan.json"

FILE_NAME = re.compile(r"(?:(?P<split>[a-z_]+)-(?P<index>\d{5,})|head)-(?P<digest>[0-9a-f]{16})\.safetensors")
_READERS = 4
"""Threads that verify files; hashing leaves Python's lock alone."""


@dataclass(frozen=True)
class StoredFile:
    """A file whose content agrees with its name."""

    name: str
    bytes: int
    sha256: str


@dataclass
class Found:
    """What is in the directory."""

    files: dict[Piece, StoredFile] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    """File name -> what is wrong with it."""
    manifest: dict[str, Any] | None = None

    def missing(self, plan: Plan) -> list[Part]:
        """The parts that are not there."""
        return [part for part in plan.parts if part.piece not in self.files]

    @property
    def whole(self) -> bool:
        """Whether the pass was finished and nothing is damaged."""
        return self.manifest is not None and not self.damaged


class ReferenceCache:
    """One cache at ``place``."""

    def __init__(self, place: Place) -> None:
        self.place = place

    # -- looking -------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, None before the pass is finished; the files are not looked at.

        Raises:
            ArtifactError: when it is damaged, or of another version of this format.
        """
        return self._document(MANIFEST)

    def description(self) -> dict[str, Any] | None:
        """What the cache will hold; None when no pass has started. Raises as `manifest` does."""
        return self._document(DESCRIPTION)

    def plan(self) -> Plan | None:
        """Which file holds which rows; None when there is no plan, or it is damaged: then it is made anew from what
        the files say of themselves."""
        try:
            document = self._unsealed(PLAN)
            return None if document is None else Plan.of_json(document["parts"])
        except (ValueError, KeyError):
            return None

    def _document(self, name: str) -> dict[str, Any] | None:
        try:
            return self._unsealed(name)
        except ValueError as error:
            raise ArtifactError(
                f"reference cache {self.place.root}: {name} is damaged ({error}); run the job again, which makes it "
                "anew from the shards"
            ) from error

    def _unsealed(self, name: str) -> dict[str, Any] | None:
        try:
            document = unseal(self.place.read(name))
        except FileNotFoundError:
            return None
        if document.get("format") not in READABLE:
            raise ArtifactError(
                f"reference cache {self.place.root} is of another version ({document.get('format')!r}, this one reads "
                f"{' and '.join(READABLE)}): read it with that version, or remove the directory"
            )
        return document

    def verify(self) -> Found:
        """Read every file and compare it with its name, and with the manifest if there is one.

        Raises:
            ArtifactError: when the place cannot be read, or is of another version of this format.
        """
        found = Found()
        try:
            found.manifest = self._unsealed(MANIFEST)
        except ValueError as error:
            found.damaged[MANIFEST] = str(error)
        expected = {} if found.manifest is None else {one["file"]: one for one in manifest_files(found.manifest)}
        names = [name for name in self.place.names() if FILE_NAME.fullmatch(name)]
        with ThreadPoolExecutor(_READERS) as readers:
            for name, stored in zip(names, readers.map(self._stored, names), strict=True):
                match = FILE_NAME.fullmatch(name)
                if match is None or stored is None:  # somebody who repairs the cache has just removed it
                    continue
                listed = expected.pop(name, None)
                if not stored.sha256.startswith(match["digest"]) or (listed and listed["sha256"] != stored.sha256):
                    found.damaged[name] = f"its content ({stored.bytes:,} bytes) differs from the digest in its name"
                else:
                    found.files.setdefault(piece_of(match), stored)
        found.damaged |= dict.fromkeys(expected, "is missing")
        return found

    def _stored(self, name: str) -> StoredFile | None:
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in self.place.chunks(name):
                digest.update(chunk)
                size += len(chunk)
        except FileNotFoundError:
            return None
        return StoredFile(name, size, digest.hexdigest())

    # -- filling -------------------------------------------------------------------------------------------

    def start(self, description: Mapping[str, Any]) -> None:
        """Say what will be here; what a former pass said of the same key is the same."""
        data = seal({"format": FORMAT, **description})
        try:
            if self.place.read(DESCRIPTION) == data:
                return
        except FileNotFoundError:
            pass
        self.place.write(DESCRIPTION, data)

    def settle(self, plan: Plan) -> None:
        """Write down the plan; every later pass of this cache follows it."""
        if self.plan() != plan:
            self.place.write(PLAN, seal({"format": FORMAT, "parts": plan.as_json()}))

    def remove(self, names: Iterable[str]) -> None:
        """Remove damaged files, the manifest first: without it the pass is unfinished."""
        names = list(names)
        if names:
            self.place.remove(MANIFEST)
        for name in names:
            match, stored = FILE_NAME.fullmatch(name), self._stored(name)
            if match is None or stored is None or not stored.sha256.startswith(match["digest"]):
                self.place.remove(name)  # unless somebody else has repaired it since

    def commit(self, piece: Piece, local: Path) -> StoredFile:
        """Move a finished local file in, under the name of its content; it appears at once or not at all. A file that
        is there already stays untouched (an actor of a killed job may finish its shard late)."""
        digest = digest_file(local)
        stored = StoredFile(f"{piece.stem}-{digest[:16]}.safetensors", local.stat().st_size, digest)
        if self._stored(stored.name) != stored:
            self.place.publish(local, stored.name)
        return stored

    def committed(self, piece: Piece) -> StoredFile | None:
        """A file of this piece that is there and whole: another actor committed it before it died."""
        for name in self.place.names():
            match = FILE_NAME.fullmatch(name)
            if match and piece_of(match) == piece:
                stored = self._stored(name)
                if stored is not None and stored.sha256.startswith(match["digest"]):
                    return stored
        return None

    def adopt(self, piece: Piece, other: ReferenceCache, name: str) -> StoredFile | None:
        """Make another cache's file one of this one, without its bytes passing through where the place can do that;
        None when it is gone, or differs from the digest in its name."""
        match, stored = FILE_NAME.fullmatch(name), other._stored(name)
        if match is None or stored is None or not stored.sha256.startswith(match["digest"]):
            return None
        mine = StoredFile(f"{piece.stem}-{stored.sha256[:16]}.safetensors", stored.bytes, stored.sha256)
        try:
            self.place.adopt(other.place, name, mine.name)
        except FileNotFoundError:
            return None
        return mine

    def fetched(self, name: str, scratch: Path) -> Place | None:
        """A file in a place of its own that nobody removes, whole; None when it is gone or damaged."""
        here, match = Place(str(scratch)), FILE_NAME.fullmatch(name)
        if match is None:  # a plan may have been written by others, and the file is written by this name
            return None
        try:
            if self.place.is_local:
                here.adopt(self.place, name, name)
            else:
                with (scratch / name).open("wb") as file:
                    file.writelines(self.place.chunks(name))
        except FileNotFoundError:
            return None
        return here if digest_file(scratch / name).startswith(match["digest"]) else None

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest; the cache is there from now on."""
        self.place.write(MANIFEST, seal({"format": FORMAT, **manifest}))
        finished = self.manifest()
        assert finished is not None
        return finished


def manifest_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records (``file``, ``bytes``, ``sha256``) of all shards and the head."""
    return [*manifest["shards"], *([manifest["head"]] if manifest["head"] else [])]


def piece_of(match: re.Match[str]) -> Piece:
    """The piece that a file is, by its name."""
    return Piece(HEAD) if match["split"] is None else Piece(match["split"], int(match["index"]))
