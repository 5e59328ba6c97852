"""Files and rows of other caches become this one's: as files where all of a file is wanted, else row by row.

Every source is read to its end and compared with the digest in its name before anything of it is here, so that damage
does not spread; what is gone or damaged is not taken, and the pass computes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.tables import read_numbered
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache, StoredFile
from pipeline.reference.layout import ShardHeader, ShardRow, write_shard
from pipeline.reference.plan import Part, Piece, Source, numbers_in
from pipeline.reference.shard_file import ShardFile
from pipeline.reference.statistics import Statistics, copied_statistics
from pipeline.reference.stored import StoredShard

_AT_ONCE = 4
"""Files that are verified, or copied, side by side; hashing leaves Python's lock alone."""


@dataclass(frozen=True)
class TakeOver:
    """Fills a cache from others at the same root."""

    cache: ReferenceCache
    root: Place
    """Where all caches are."""
    tokens_dir: Path
    pass_key: str

    def parts(self, parts: Iterable[Part], done: Callable[[Part], None]) -> dict[Piece, StoredFile]:
        """Take over what can be, and say ``done`` for each; the others' sources are gone or damaged."""
        parts, taken = list(parts), {}
        with ThreadPoolExecutor(_AT_ONCE) as hands:
            for part, stored in zip(parts, hands.map(self._part, parts), strict=True):
                if stored is not None:
                    taken[part.piece] = stored
                    done(part)
        return taken

    def _part(self, part: Part) -> StoredFile | None:
        if part.is_whole_file:
            source = part.sources[0]
            return self.cache.adopt(part.piece, self._donor(source), source.file)
        pairs = read_numbered(self.tokens_dir / f"{part.piece.split}.parquet", PairTokens, numbers_in(part.rows))
        with self.cache.place.scratch() as scratch:
            rows: list[ShardRow] = []
            statistics, vocab_size = Statistics(), 0
            for source in part.sources:
                where = self._donor(source).fetched(source.file, scratch)
                if where is None:
                    return None
                file = ShardFile(where, source.file)
                vocab_size = int(file.metadata["vocab_size"])
                numbers = numbers_in(source.rows or ())
                mine = pairs[len(rows) : len(rows) + len(numbers)]
                copied = _rows(StoredShard(file), numbers, mine)
                rows += copied
                there = Statistics(**json.loads(file.metadata["statistics"]))
                statistics = statistics.plus(copied_statistics(mine, copied, there))
            local = scratch / part.piece.stem
            write_shard(local, ShardHeader(self.pass_key, vocab_size), rows, statistics.as_dict())
            return self.cache.commit(part.piece, local)

    def _donor(self, source: Source) -> ReferenceCache:
        return ReferenceCache(self.root.below(source.cache))


def _rows(shard: StoredShard, numbers: list[int], pairs: list[PairTokens]) -> list[ShardRow]:
    """Rows of a shard under the names that they have in these data."""
    rows = []
    for number, pair in zip(numbers, pairs, strict=True):
        stored = shard.read(number)
        assert shard.contents[number] == pair.content, "the plan follows the header of this very file"
        tensors = {name: (stored.chosen[name], stored.rejected[name]) for name in stored.chosen}
        lengths = len(pair.chosen_ids), len(pair.rejected_ids)
        rows.append(ShardRow(pair.row_id, pair.content, lengths, stored.logps, tensors))
    return rows
