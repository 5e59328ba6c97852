"""Caches whose rows a new one may take over, and what is in them: found by small reads, and no model is loaded.

A donor is any cache at the same root, finished or not, that differs in nothing but its data (`pass_key`). It is only
looked at here; whether its files are whole is found when they are taken (`pipeline.reference.takeover`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import DESCRIPTION, FILE_NAME, ReferenceCache
from pipeline.reference.cover import DonorFile, make_plan
from pipeline.reference.key import pass_key
from pipeline.reference.plan import HEAD, Piece, Plan
from pipeline.reference.version import FORMAT

MOST_DONORS = 20
"""The newest are asked: they hold what older ones held, where data grow."""

_READERS = 8
"""Requests to an object store at once."""
_HEADER_BYTES = 1 << 16
"""Read of a file at first; more only when its header is longer."""


def plan_of(
    cache: ReferenceCache,
    root: Place,
    made_from: Mapping[str, Any],
    here: Mapping[Piece, str],
    rows: Mapping[str, Sequence[str]],
    say: Callable[[str], None],
) -> Plan:
    """The plan of a cache: the one that it has, or a new one.

    Args:
        root: where all caches are.
        made_from: the parts of the cache's key.
        here: its files that are there, by piece.
        rows: contents of the rows of every split's table.
        say: a line about a cache that cannot be used.
    """
    plan = cache.plan()
    if plan is not None:
        return plan
    contents = _contents_here(cache, [name for piece, name in here.items() if piece.split != HEAD])
    known = {piece: contents[name] for piece, name in sorted(here.items()) if name in contents}
    key = cache.place.root.rsplit("/", 1)[-1]
    donors = donor_files(root, key, pass_key(made_from), say)
    return make_plan(rows, known, donors, made_from["compute"]["rows_per_shard"], made_from["tier"]["name"] == "hidden")


def donor_files(root: Place, key: str, pass_: str, say: Callable[[str], None]) -> Iterator[DonorFile]:
    """What the newest donors of the cache ``key`` hold, the newest donor first and in it the head first; a file that
    was found under another name before is left out. Lazy: donors that nobody asks for any more are not read."""
    seen: set[str] = set()
    for name in find_donors(root, key, pass_, say):
        donor, fresh = root.below(name), []
        for file in donor.names():
            match = FILE_NAME.fullmatch(file)
            if match is not None and match["digest"] not in seen:
                seen.add(match["digest"])
                fresh.append(file)
        yield from (DonorFile(name, file, HEAD, ()) for file in fresh if file.startswith(HEAD))
        shards = [file for file in fresh if not file.startswith(HEAD)]
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(partial(_shard, donor, name, pass_), shards)


def find_donors(root: Place, key: str, pass_: str, say: Callable[[str], None]) -> list[str]:
    """Keys of the newest caches of the same pass, the newest first."""

    def age(name: str) -> float | None:
        """When it was begun, if it is of the same pass."""
        place = root.below(name)
        try:
            description = ReferenceCache(place).description()
            return place.modified(DESCRIPTION) if description and pass_key(description["made_from"]) == pass_ else None
        except FileNotFoundError:  # somebody has just removed it
            return None
        except (ArtifactError, KeyError) as error:
            say(f"nothing is taken over from {place.root}: {error}")
            return None

    names = [name for name in root.folders() if name != key]
    with ThreadPoolExecutor(_READERS) as readers:
        ages = list(readers.map(age, names))
    found = sorted(((begun, name) for begun, name in zip(ages, names, strict=True) if begun is not None), reverse=True)
    return [name for _, name in found[:MOST_DONORS]]


def _shard(place: Place, donor: str, pass_: str, file: str) -> DonorFile:
    """A shard with the contents of its rows; with none when its header cannot be read or is of another cache."""
    nothing = DonorFile(donor, file, "", ())
    try:
        metadata = _metadata(place, file)
        if metadata["format"] == FORMAT and metadata["pass"] != pass_:
            return nothing
        if metadata["format"] != FORMAT and metadata["key"] != donor:
            return nothing
        contents = tuple(json.loads(metadata["contents"]))
        return DonorFile(donor, file, file.rsplit("-", 2)[0], contents, metadata["format"] == FORMAT)
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return nothing


def _metadata(place: Place, file: str) -> dict[str, str]:
    data = place.read(file, 0, _HEADER_BYTES)
    length = 8 + int.from_bytes(data[:8], "little")
    if length > len(data) == _HEADER_BYTES:
        data += place.read(file, _HEADER_BYTES, length)
    metadata: dict[str, str] = json.loads(data[8:length])["__metadata__"]
    return metadata


def _contents_here(cache: ReferenceCache, files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Contents of the rows of a cache's own shards, by file, as far as their headers can be read."""
    found = {}
    for file in files:
        with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
            found[file] = tuple(json.loads(_metadata(cache.place, file)["contents"]))
    return found
