"""Sets of pairs, known by their contents and kept by their digest: a text file with an id on each line, which
``data.leave_out`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pipeline.errors import ArtifactError
from pipeline.places import Place

_ENDING = ".txt"
_DIGEST_LENGTH = 16

EMPTY = "none"
"""The name of the empty set, which has no file."""


class RowSets:
    """The sets below a place.

    Args:
        dry: write nothing; a set that is kept is remembered here alone.
    """

    def __init__(self, place: Place, *, dry: bool = False) -> None:
        self._place, self._dry = place, dry
        self._kept: dict[str, frozenset[str]] = {}

    def keep(self, rows: Iterable[str]) -> str:
        """Keep a set of content ids; returns its digest."""
        kept = frozenset(rows)
        digest = digest_of(kept)
        if digest != EMPTY and digest not in self._kept:
            if not self._dry:
                self._place.create(digest + _ENDING, _text(kept))
            self._kept[digest] = kept
        return digest

    def read(self, digest: str) -> frozenset[str]:
        """The set of a digest.

        Raises:
            ArtifactError: when it is gone, or a byte of it was changed.
        """
        if digest == EMPTY:
            return frozenset()
        if digest in self._kept:
            return self._kept[digest]
        try:
            data = self._place.read(digest + _ENDING)
        except FileNotFoundError as error:
            raise self._damaged(digest, "is gone") from error
        rows = frozenset(data.decode("ascii", "replace").split())
        if digest_of(rows) != digest:
            raise self._damaged(digest, "was changed")
        self._kept[digest] = rows
        return rows

    def where(self, digest: str) -> str:
        """Path or URL of the file of a set that is not empty."""
        return f"{self._place.root}/{digest}{_ENDING}"

    def _damaged(self, digest: str, what: str) -> ArtifactError:
        return ArtifactError(f"{self.where(digest)}, which says which pairs are known, {what}: restore it from a copy")


def digest_of(rows: Iterable[str]) -> str:
    """What a set is called."""
    text = _text(rows)
    return hashlib.sha256(text).hexdigest()[:_DIGEST_LENGTH] if text else EMPTY


def _text(rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in sorted(set(rows))).encode("ascii")
