"""Which file of a cache holds which rows of the data's tables, and where those that other caches hold are taken from.

The plan is made once a cache (`pipeline.reference.cover`) and written down before any file, so that a pass that was
killed goes on with it. Pure: nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

HEAD = "head"

Ranges = tuple[tuple[int, int], ...]
"""Numbers in their order, as (first, behind the last): ((0, 64), (70, 71))."""


@dataclass(frozen=True, order=True)
class Piece:
    """One file that the cache will have: a shard, or the head (``split`` is then "head")."""

    split: str
    index: int = 0

    def __str__(self) -> str:
        return "the head" if self.split == HEAD else f"shard {self.index} of {self.split}"

    @property
    def stem(self) -> str:
        return HEAD if self.split == HEAD else f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class Source:
    """Rows of a file of another cache."""

    cache: str
    """The other cache's key."""
    file: str
    rows: Ranges | None = None
    """Numbers of rows in that file; None is the whole file as it is."""


@dataclass(frozen=True)
class Part:
    """A piece, the rows of its split's table that it holds, and where they are taken from."""

    piece: Piece
    rows: Ranges = ()
    """Numbers of rows in the table; those of the sources stand in the same order."""
    sources: tuple[Source, ...] = ()
    """None: the model computes them."""

    @property
    def pairs(self) -> int:
        return sum(stop - start for start, stop in self.rows)

    @property
    def is_whole_file(self) -> bool:
        """Whether it is another cache's file as it is."""
        return bool(self.sources) and self.sources[0].rows is None


@dataclass(frozen=True)
class Plan:
    """All files of a cache."""

    parts: tuple[Part, ...]

    def computing(self, pieces: Collection[Piece]) -> Plan:
        """The same rows in the same files, but those of ``pieces`` are computed."""
        return Plan(tuple(replace(part, sources=()) if part.piece in pieces else part for part in self.parts))

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"split": part.piece.split, "index": part.piece.index, "rows": _text(part.rows)}
            | ({"from": [_source_json(source) for source in part.sources]} if part.sources else {})
            for part in self.parts
        ]

    @classmethod
    def of_json(cls, parts: Iterable[Mapping[str, Any]]) -> Plan:
        return cls(
            tuple(
                Part(
                    Piece(part["split"], part["index"]),
                    _ranges(part["rows"]),
                    tuple(
                        Source(one["cache"], one["file"], None if one["rows"] is None else _ranges(one["rows"]))
                        for one in part.get("from", ())
                    ),
                )
                for part in parts
            )
        )


def ranges(numbers: Iterable[int]) -> Ranges:
    """Numbers in the given order, each run of consecutive ones together."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return tuple(found)


def numbers_in(rows: Ranges) -> list[int]:
    """What `ranges` was given."""
    return [number for start, stop in rows for number in range(start, stop)]


def _source_json(source: Source) -> dict[str, Any]:
    return {
        "cache": source.cache,
        "file": source.file,
        "rows": None if source.rows is None else _text(source.rows),
    }


def _text(rows: Ranges) -> str:
    """Ranges on one line, for a plan of many: "0:64 70:71"."""
    return " ".join(f"{start}:{stop}" for start, stop in rows)


def _ranges(text: str) -> Ranges:
    pairs = [one.split(":") for one in text.split()]
    return tuple((int(start), int(stop)) for start, stop in pairs)
