"""Which group belongs to which split, and deterministic subsets: both decided by hashes alone.

A group's split depends on its name and the seed, not on the other groups, so adding data never moves a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from pipeline.config import DataConfig
from pipeline.errors import DataError
from pipeline.records import SPLITS, Split


class HasRowId(Protocol):
    """Any record with a ``row_id``."""

    @property
    def row_id(self) -> str: ...


R = TypeVar("R", bound=HasRowId)


def hash_key(text: str) -> str:
    """sha256 of the text as 64 hex digits: the sort key of every order that must not depend on the input's."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def split_of(group: str, seed: int, validation_fraction: float, test_fraction: float) -> Split:
    """The split of a group: sha256 of "seed:group" as a number in [0, 1) against two thresholds.

    Below ``test_fraction`` is test, the next ``validation_fraction`` validation, the rest train. A larger
    test_fraction therefore only moves groups into test, never out of it.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    if uniform < test_fraction:
        return "test"
    return "validation" if uniform < test_fraction + validation_fraction else "train"


def config_split(group: str, config: DataConfig) -> Split:
    """`split_of` with the seed and fractions of a run."""
    return split_of(group, config.split_seed, config.validation_fraction, config.test_fraction)


def in_hash_order(rows: Iterable[R]) -> list[R]:
    """Rows in the order of the hash of their ``row_id``: the same for every order of the input."""
    return sorted(rows, key=lambda row: (hash_key(row.row_id), row.row_id))


def take(rows: Iterable[R], n: int | None) -> list[R]:
    """The first ``n`` rows in hash order (all of them when ``n`` is None).

    The subset does not depend on the order of the input, and a smaller ``n`` takes a prefix of a larger one.
    """
    ordered = in_hash_order(rows)
    return ordered if n is None else ordered[:n]


def require_splits(pairs: Mapping[Split, int], groups: Mapping[Split, int], when: str) -> None:
    """Raise DataError when a split has no pair; ``when`` says after which step, for the message."""
    empty = [name for name in SPLITS if pairs[name] == 0]
    if empty:
        counts = ", ".join(f"{name} {pairs[name]} pairs in {groups[name]} groups" for name in SPLITS)
        raise DataError(
            f"no pair is left for {' and '.join(empty)} {when} ({counts}): give more data or more different groups "
            "(data.group_column), or change data.validation_fraction, data.test_fraction or data.split_seed"
        )
