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
    """The sets below a place."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def keep(self, rows: Iterable[str]) -> str:
        """Keep a set of content ids; returns its digest."""
        digest, data = digest_of(rows), _text(rows)
        if digest != EMPTY:
            self._place.create(digest + _ENDING, data)
        return digest

    def read(self, digest: str) -> frozenset[str]:
        """The set of a digest.

        Raises:
            ArtifactError: when it is gone, or a byte of it was changed.
        """
        if digest == EMPTY:
            return frozenset()
        try:
            data = self._place.read(digest + _ENDING)
        except FileNotFoundError as error:
            raise self._damaged(digest, "is gone") from error
        rows = frozenset(data.decode("ascii", "replace").split())
        if digest_of(rows) != digest:
            raise self._damaged(digest, "was changed")
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
