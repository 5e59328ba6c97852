"""Where a job works: a directory that every node sees, or a URL with a scratch directory of each node's own.

What is in a storage is named by *where* strings: a path on a directory, a URL such as
``s3://bucket/prefix/artifacts/align/KEY/model`` otherwise. They pass between processes and nodes, and who wants to
read files asks `local_copy` for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.copies import node_copy, remote_path
from pipeline.places import Place
from pipeline.refusals import STORAGE
from pipeline.surroundings import default_storage, node_scratch


@dataclass(frozen=True)
class Storage:
    """The root of all that jobs leave."""

    root: str
    """An absolute directory, or a URL, without a slash at the end."""
    here: Path
    """For files that only this machine needs: the root itself, or for a URL a scratch directory of this node."""
    is_local: bool

    def at(self, *parts: str) -> str:
        """A path or URL below the root."""
        return "/".join((self.root, *parts))

    def place(self, *parts: str) -> Place:
        """The directory at `at`; nothing is created."""
        return Place(self.at(*parts), STORAGE)

    def store(self, *, create: bool = True) -> Store:
        """The artefacts (`pipeline.artifacts.Store`)."""
        return Store(self.root, create=create)


def open_storage(root: str | None) -> Storage:
    """The storage at a directory or URL; None is the job's default. Nothing is created.

    Raises:
        ArtifactError: for a protocol that nobody knows, or one whose package is not installed.
    """
    root = root or default_storage()
    if "://" in root and not root.startswith("file://"):
        return Storage(Place(root, STORAGE).root, node_scratch(root), False)
    path = Path(root.removeprefix("file://")).expanduser().resolve()
    return Storage(str(path), path, True)


def local_copy(where: str) -> Path:
    """The files at a *where* string: a directory as it is; for the URL of (a directory in) an artefact this node's own
    verified copy, made once a node (`pipeline.copies`).

    Raises:
        ArtifactError: when the artefact is gone or damaged, or the copy cannot be made.
    """
    if "://" not in where:
        return Path(where)
    at = remote_path(where)
    return node_copy(at.artifact, full=False) / at.inside
