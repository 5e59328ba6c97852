"""The registry: one line of versions for each reference, with aliases that move at once and can be moved back.

::

    <root>/lines/<line>.json          one document a line, whose name comes from the reference
    <root>/<line>/versions/           manifests: 00000000.json is the reference, for ever
    <root>/<line>/models/<id>/        the files of a version: a Hugging Face model directory
    <root>/<line>/audit/              the trail, which says where the aliases point (`pipeline.release.trail`)
    <root>/<line>/aliases/            the same after every record, for the finding of a cut trail

It needs neither Ray nor a server: whoever can reach the directory, or the object store, can move an alias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.digests import seal, unseal
from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.manifest import DESCRIPTIONS, check_model_directory, describe_files
from pipeline.storage import Storage

OPTION = "--registry.root"
DIRECTORY = "registry"
"""Below the storage, where no other root is named."""
LINE_LENGTH = 16


def open_registry(root: str) -> Registry:
    """The registry at a directory or URL; nothing is created."""
    return Registry(Place(root, OPTION))


def root_of(storage: Storage, root: str | None) -> str:
    """Where the registry of a storage is."""
    return storage.at(DIRECTORY) if root is None else root


def line_name(reference_digest: str) -> str:
    """The name of a reference's line."""
    return reference_digest[:LINE_LENGTH]


class Registry:
    """All lines below one root."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def lines(self) -> list[str]:
        """Names of the lines."""
        names = (re.fullmatch(r"([0-9a-f]{8,64})\.json", name) for name in self.place.below("lines").names())
        return [found[1] for found in names if found is not None]

    def line(self, name: str | None = None) -> Line:
        """A line by its name, or the beginning of it; without one the only line there is.

        Raises:
            RegistryError: when there is none, or several, or its audit trail is gone.
        """
        lines = self.lines()
        if not lines:
            raise RegistryError(
                f"there is no registry at {self.place.root}: a run of jobs/align.py makes one "
                f"(set --storage, or {OPTION}, to where it is)"
            )
        found = [name] if name in lines else [line for line in lines if line.startswith(name or "")]
        if len(found) != 1:
            listed = "\n".join(f"  {line}  {self.description(line)}" for line in (found or lines))
            what = f"no line {name!r}" if not found else f"{len(found)} lines"
            raise RegistryError(f"there are {what} in {self.place.root}: choose one with --line\n{listed}")
        line = Line(self.place, found[0])
        if not line.trail.numbers():  # its first record is older than its document
            where = line.place.root
            raise RegistryError(f"the audit trail in {where} is gone: restore {where}/audit from a copy")
        return line

    def description(self, line: str) -> str:
        """What a line's reference is, in words."""
        return str(self._document(line)["description"])

    def _document(self, line: str) -> dict[str, Any]:
        try:
            return unseal(self.place.below("lines").read(f"{line}.json"))
        except (FileNotFoundError, ValueError) as error:
            raise RegistryError(
                f"line {line} in {self.place.root} is damaged: {error}; restore lines/{line}.json"
            ) from error

    def begin(
        self,
        name: str,
        reference: Path,
        description: str,
        provenance: Mapping[str, Any],
    ) -> Line:
        """The line of a reference, begun with it as version 0 unless it is there.

        Args:
            reference: its model directory with its card.
            description: what it is, in words.
            provenance: what it was made from.

        Raises:
            RegistryError: when the line's version 0 is another model.
        """
        check_model_directory(reference)
        line = self.line(name) if name in self.lines() else Line(self.place, name)
        if not line.versions.numbers():
            if not re.fullmatch(r"[0-9a-f]{8,64}", name):
                raise RegistryError(f"{name!r} is no name of a line: 8 to 64 hexadecimal digits")
            line.register(reference, provenance, why="the reference, which this line begins with")
        line.record_versions()
        document = {"line": name, "description": description}
        self.place.below("lines").create(f"{name}.json", seal(document))
        manifest = line.versions.manifest(0)
        kept = manifest.files
        for path, entry in describe_files(reference).items():
            if path in kept and path not in DESCRIPTIONS and kept[path] != entry:
                raise RegistryError(
                    f"line {name} in {self.place.root} begins with another reference ({path} differs), though both "
                    f"were made from the same description: set {OPTION} to another place for the new one"
                )
        line.versions.repair(manifest, reference)
        return line
