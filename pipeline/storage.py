"""Where a job works: a directory that every node sees, or a URL with a scratch directory of each node's own.

What is in a storage is named by *where* strings: a path on a directory, a URL such as
``s3://bucket/prefix/artifacts/align/KEY/model`` otherwise. They pass between processes and nodes, and who wants to
read files asks `local_copy` for them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.copies import node_copy, remote_path
from pipeline.errors import ArtifactError
from pipeline.objects import own_temporary_directory
from pipeline.places import Place
from pipeline.refusals import STORAGE, local_refusals
from pipeline.surroundings import SCRATCH, default_storage, node_scratch


@dataclass(frozen=True)
class Folder:
    """A directory of small files that people and other nodes read. At a URL, files are written into this node's copy
    and then sent."""

    path: Path
    url: str | None = None
    """None where everybody sees ``path``."""

    @property
    def where(self) -> str:
        """The directory or URL."""
        return str(self.path) if self.url is None else self.url

    def below(self, *parts: str) -> Folder:
        """A folder below this one."""
        return Folder(self.path.joinpath(*parts), None if self.url is None else "/".join((self.url, *parts)))

    def send(self, *names: str) -> None:
        """Let everybody see what was written into ``path``: these files, or all."""
        if self.url is None:
            return
        place = Place(self.url, STORAGE)
        for name in names or sorted(path.name for path in self.path.iterdir() if path.is_file()):
            place.send(self.path / name, name)

    def fetch(self, name: str) -> Path:
        """A file as it is now, in ``path``; there is none if there is none."""
        if self.url is not None:
            with local_refusals(f"{self.path} cannot be written", SCRATCH):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    (self.path / name).write_bytes(Place(self.url, STORAGE).read(name))
                except FileNotFoundError:
                    (self.path / name).unlink(missing_ok=True)
        return self.path / name


def folder_at(where: str) -> Folder:
    """The folder at a directory or URL."""
    return Folder(node_scratch(where), where.rstrip("/")) if "://" in where else Folder(Path(where))


def fetched(where: str) -> Path:
    """A small file at a path or URL, on a disk of this node; there is none if there is none."""
    directory, _, name = where.rpartition("/")
    return folder_at(directory).fetch(name)


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

    def folder(self, *parts: str) -> Folder:
        """A directory of small files for people and other nodes."""
        return folder_at(self.at(*parts))

    def for_ray(self, name: str) -> Path:
        """A directory for what Ray Train and Ray Tune write on every node, by one name on all of them; nothing reads
        it."""
        return (self.here if self.is_local else own_temporary_directory()) / name

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


def write_problem(root: str) -> str | None:
    """Why this process cannot write and read at a directory or URL; None when it can."""
    name, data = f".probe-{uuid.uuid4().hex}", b"may be removed"
    try:
        place = Place(root, STORAGE)
        place.write(name, data)
        found = place.read(name)
        place.remove(name)
    except ArtifactError as error:
        return str(error)
    return None if found == data else f"{root} gives back other bytes than were written"


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
