"""What is known of a version for ever: its files by size and digest, what it was made from, and who registered it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.digests import digest_file, digest_json, seal, unseal
from pipeline.errors import ModelError

DESCRIPTIONS = ("README.md", "card.html", "provenance.json", "run.yaml")
"""Say what a version is, in a language and with the words that people choose and by the code of the day: no part of
what makes two versions the same."""

_WEIGHTS = "*.safetensors"
_EXECUTABLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|npy|h5|msgpack|py|pyc|so|sh)$", re.IGNORECASE)
"""Weights that may run code when they are loaded, and code."""
_ID = re.compile(r"[0-9a-f]{32}(-\d+)?")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class FileEntry:
    """One file of a version."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is known of a version for ever."""

    version: int
    id: str
    """Digest over all files; the name of their directory."""
    identity: str
    """Digest over all files but the descriptions: versions with the same are the same."""
    files: Mapping[str, FileEntry]
    provenance: Mapping[str, Any]
    when: str
    who: str
    why: str
    digest: str
    """sha256 (hex) of the manifest's file."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(entry.bytes for entry in self.files.values())


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file below a directory, by its name relative to it."""
    return {
        path.relative_to(directory).as_posix(): FileEntry(path.stat().st_size, digest_file(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def check_model_directory(directory: Path) -> None:
    """Refuse what no server could load as it is, and what runs code when it is loaded.

    Raises:
        ModelError: naming the file that is missing or too much.
    """
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json, so it is not a Hugging Face model directory")
    if not any(directory.glob(_WEIGHTS)):
        raise ModelError(f"{directory} has no weights in *.safetensors; save the model with model.save_pretrained")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{directory} has no tokenizer (tokenizer.json); save it beside the weights")
    for path in sorted(directory.rglob("*")):
        if _EXECUTABLE.fullmatch(path.name):
            raise ModelError(
                f"{path.relative_to(directory)} in {directory} may run code when it is loaded: a version holds "
                "weights as safetensors and no programs; remove it"
            )


def identity_of(files: Mapping[str, FileEntry]) -> str:
    """Digest over the files that make a version what it is."""
    return digest_json({name: entry.sha256 for name, entry in files.items() if name not in DESCRIPTIONS})


def id_of(files: Mapping[str, FileEntry], taken: Set[str] = frozenset()) -> str:
    """Digest over all files, shortened: the name of their directory.

    Args:
        taken: ids of versions that were removed. Theirs are never used again, since whoever removes one may not have
            come to its files yet.
    """
    digest = digest_json({name: entry.sha256 for name, entry in files.items()})[:32]
    return next(name for number in count() if (name := f"{digest}-{number}" if number else digest) not in taken)


def manifest_bytes(
    version: int, id: str, files: Mapping[str, FileEntry], provenance: Mapping[str, Any], when: str, who: str, why: str
) -> bytes:
    """The file of a manifest."""
    return seal(
        {
            "version": version,
            "id": id,
            "identity": identity_of(files),
            "files": {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in files.items()},
            "provenance": dict(provenance),
            "when": when,
            "who": who,
            "why": why,
        }
    )


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its file.

    Raises:
        ValueError: when a byte of it was changed.
    """
    value = unseal(data)
    try:
        files = {_inside(name): FileEntry(one["bytes"], one["sha256"]) for name, one in value["files"].items()}
        if not _ID.fullmatch(value["id"]):
            raise ValueError(f"{value['id']!r} is no id of a version")
        return Manifest(
            value["version"],
            value["id"],
            value["identity"],
            files,
            value["provenance"],
            value["when"],
            value["who"],
            value["why"],
            hashlib.sha256(data).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest ({error})") from error


def _inside(name: str) -> str:
    """A file's name, which must not lead out of the version's directory: registries may be written by others."""
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no file inside a version")
    return name
