"""From where the rows of a cache come: who holds which, and what is left for the model.

A row is known by its content, the sha256 of its tokens: what it is called, where in the table it stands and in which
split it is do not matter to the reference. In this order the rows that are wanted come from

1. files that lie in the cache already (none, unless its plan was lost);
2. files of other caches (donors) all of whose rows are wanted in one split: taken as they are;
3. the wanted rows of other files of donors: copied, with those of several files in one. So are files that are less
   than half full, as soon as there is something to put with them: data that grow a little every day would else end in
   a file a day;
4. the model: in the order of the table, `rows_per_shard` to a file.

Without donors that leaves fixed ranges of the table. Pure: nothing here reads or writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from pipeline.reference.plan import HEAD, Part, Piece, Plan, Ranges, Source, numbers_in, ranges


@dataclass(frozen=True)
class DonorFile:
    """A shard of another cache, by the contents of its rows, or its head, which has none."""

    cache: str
    file: str
    split: str
    contents: tuple[str, ...]
    as_it_is: bool = True
    """Whether the file may be taken as it is; only its rows otherwise."""


def fixed_parts(rows: Mapping[str, int], rows_per_shard: int, has_head: bool) -> list[Part]:
    """Every file of a cache that takes nothing from others: fixed ranges of rows, and the head."""
    shards = [
        Part(Piece(split, index), ((start, min(start + rows_per_shard, total)),))
        for split, total in rows.items()
        for index, start in enumerate(range(0, total, rows_per_shard))
    ]
    return [*shards, Part(Piece(HEAD))] if has_head else shards


def make_plan(
    wanted: Mapping[str, Sequence[str]],
    here: Mapping[Piece, Sequence[str]],
    donors: Iterable[DonorFile],
    rows_per_shard: int,
    has_head: bool,
) -> Plan:
    """Cover all wanted rows.

    Args:
        wanted: contents of every split's rows, in the order of its table.
        here: contents of the rows of the shards that lie in the cache.
        donors: files of other caches, the preferred ones first. They are asked for one after the other.
    """
    lacking = {split: _Lacking(contents) for split, contents in wanted.items()}
    parts = [
        Part(piece, lacking[piece.split].take(contents))
        for piece, contents in here.items()
        if piece.split in lacking and lacking[piece.split].has_all(contents)
    ]
    used = {part.piece for part in parts}
    free = {split: _free(split, used) for split in wanted}
    heads: list[Source] = []
    partly: list[tuple[DonorFile, list[tuple[int, str]]]] = []
    for donor in donors:
        if donor.split == HEAD:
            heads.append(Source(donor.cache, donor.file))
            continue
        split = next(_whole_in(donor, lacking), None)
        if split is not None:
            rows = lacking[split].take(donor.contents)
            parts.append(Part(next(free[split]), rows, (Source(donor.cache, donor.file),)))
        some = [(n, one) for n, one in enumerate(donor.contents) if any(one in rest for rest in lacking.values())]
        partly += [(donor, some)] if some else []
        if (heads or not has_head) and not any(lacking.values()):
            break
    for split, rest in lacking.items():
        copies = list(_copies(rest, partly))
        small = [part for part in parts if part.piece.split == split and _is_small(part, rows_per_shard)]
        if len(small) + len(copies) > 1:
            parts = [part for part in parts if part not in small]
            copies = [_as_copy(part) for part in small] + copies
        parts += [Part(next(free[split]), rows, sources) for rows, sources in _packed(copies, rows_per_shard)]
        left = rest.numbers()
        parts += [
            Part(next(free[split]), ranges(left[start : start + rows_per_shard]))
            for start in range(0, len(left), rows_per_shard)
        ]
    order = list(wanted)
    parts.sort(key=lambda part: (order.index(part.piece.split), part.piece.index))
    return Plan((*parts, Part(Piece(HEAD), (), tuple(heads[:1]))) if has_head else tuple(parts))


class _Lacking:
    """Rows of one split that nothing covers yet; rows of equal content stand for each other."""

    def __init__(self, contents: Sequence[str]) -> None:
        self._rows: dict[str, list[int]] = {}
        for number in reversed(range(len(contents))):
            self._rows.setdefault(contents[number], []).append(number)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __contains__(self, content: str) -> bool:
        return content in self._rows

    def has_all(self, contents: Sequence[str]) -> bool:
        if any(content not in self._rows for content in contents):
            return False
        return all(len(self._rows[content]) >= times for content, times in Counter(contents).items())

    def take_one(self, content: str) -> int:
        rows = self._rows[content]
        number = rows.pop()
        if not rows:
            del self._rows[content]
        return number

    def take(self, contents: Iterable[str]) -> Ranges:
        return ranges([self.take_one(content) for content in contents])

    def numbers(self) -> list[int]:
        return sorted(number for rows in self._rows.values() for number in rows)


def _free(split: str, used: Collection[Piece]) -> Iterator[Piece]:
    """Pieces of a split that nobody uses yet."""
    return (piece for piece in (Piece(split, index) for index in count()) if piece not in used)


def _whole_in(donor: DonorFile, lacking: Mapping[str, _Lacking]) -> Iterator[str]:
    """Splits that want every row of a file that may be taken as it is, its own split first."""
    for split in sorted(lacking, key=lambda name: name != donor.split):
        if donor.as_it_is and donor.contents and lacking[split].has_all(donor.contents):
            yield split


def _copies(
    rest: _Lacking, partly: Iterable[tuple[DonorFile, list[tuple[int, str]]]]
) -> Iterator[tuple[list[int], Source]]:
    """For every file of which a split wants some rows: their numbers in the table, and the source. One stored row
    serves all rows of its content."""
    for donor, some in partly:
        taken = []
        for number, content in some:
            while content in rest:
                taken.append((rest.take_one(content), number))
        if taken:
            taken.sort()
            yield [row for row, _ in taken], Source(donor.cache, donor.file, ranges([number for _, number in taken]))


def _is_small(part: Part, rows_per_shard: int) -> bool:
    """Whether it is another cache's file, and less than half full."""
    return part.is_whole_file and 2 * part.pairs < rows_per_shard


def _as_copy(part: Part) -> tuple[list[int], Source]:
    """A whole file as one of which all rows are copied."""
    [source] = part.sources
    return numbers_in(part.rows), Source(source.cache, source.file, ((0, part.pairs),))


def _packed(
    copies: Iterable[tuple[list[int], Source]], rows_per_shard: int
) -> Iterator[tuple[Ranges, tuple[Source, ...]]]:
    """Copies together, as long as no more than ``rows_per_shard`` rows come together."""
    numbers: list[int] = []
    sources: list[Source] = []
    for more, source in copies:
        if numbers and len(numbers) + len(more) > rows_per_shard:
            yield ranges(numbers), tuple(sources)
            numbers, sources = [], []
        numbers += more
        sources.append(source)
    if numbers:
        yield ranges(numbers), tuple(sources)
