"""Where caches are, and whether one is whole."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import ReferenceCache
from pipeline.storage import Storage


def caches_at(root: str | None, storage: Storage) -> Place:
    """The directory of all reference caches (``reference.root``, or one below the storage)."""
    return Place(root if root is not None else storage.at("references"))


def write_problem(caches: Place) -> str | None:
    """Why nothing can be written there, found out before anything is spent; None when it can."""
    name = f"write-test-{uuid.uuid4().hex}"
    try:
        caches.write(name, b"may be removed")
        caches.remove(name)
    except ArtifactError as error:
        return str(error)
    return None


def check_cache(place: str) -> None:
    """Verify a finished cache.

    Raises:
        ArtifactError: when it is gone or a file of it is damaged; running the pass again computes what is lost.
    """
    found = ReferenceCache(Place(place)).verify()
    if found.damaged:
        raise ArtifactError(f"reference cache {place}: {listed(found.damaged)}")
    if not found.whole:
        raise ArtifactError(f"reference cache {place} is gone or unfinished")


def listed(damaged: Mapping[str, str]) -> str:
    """Damaged files and what is wrong with them, the first three by name."""
    names = sorted(damaged)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name}: {damaged[name]}" for name in names[:3]) + more
