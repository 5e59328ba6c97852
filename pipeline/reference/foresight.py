"""What a pass would have to do, found out by small reads before anything runs: which pairs, which bytes. No model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import FILE_NAME, ReferenceCache, piece_of
from pipeline.reference.donors import plan_of
from pipeline.reference.key import SPLITS, cache_key, cache_parts, row_contents
from pipeline.reference.location import caches_at
from pipeline.reference.plan import numbers_in
from pipeline.storage import Storage


@dataclass(frozen=True)
class Foreseen:
    """What a pass would find and do. Files are counted by their names; damage is found when the pass runs."""

    there_bytes: int
    """Bytes of its files that need not be written: they are there, or get a second name on their own disk."""
    taken_pairs: int
    """Pairs that it would take over from other caches."""
    computed_pairs: int
    computed_tokens: int
    """Tokens (prompt, chosen and rejected) of the pairs that it would compute."""


def foresee(run: RunConfig, model_dir: Path, tokens_dir: Path, storage: Storage) -> Foreseen | None:
    """What the pass of a run would do now; None where the place of the caches cannot be asked."""
    try:
        return _foresee(run, model_dir, tokens_dir, caches_at(run.reference.root, storage))
    except ArtifactError:
        return None


def _foresee(run: RunConfig, model_dir: Path, tokens_dir: Path, root: Place) -> Foreseen:
    made_from = cache_parts(run, model_dir, tokens_dir)
    cache = ReferenceCache(root.below(cache_key(made_from)))
    names = cache.place.names()
    here = {piece_of(match): match.string for name in names if (match := FILE_NAME.fullmatch(name))}
    plan = plan_of(cache, root, made_from, here, row_contents(tokens_dir), lambda note: None)
    lacking = [part for part in plan.parts if part.piece not in here]
    computed = [part for part in lacking if not part.sources]
    there = sum(cache.place.size(name) or 0 for name in names)
    if root.is_local:
        linked = (part.sources[0] for part in lacking if part.is_whole_file)
        there += sum(root.below(source.cache).size(source.file) or 0 for source in linked)
    return Foreseen(
        there,
        sum(part.pairs for part in lacking if part.sources),
        sum(part.pairs for part in computed),
        sum(
            _tokens(
                tokens_dir / f"{split}.parquet",
                (row for part in computed if part.piece.split == split for row in numbers_in(part.rows)),
            )
            for split in SPLITS
        ),
    )


def _tokens(path: Path, rows: Iterable[int]) -> int:
    """Tokens of some rows of a table of pairs, a batch of it in memory at a time."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lengths = [np.empty(0, dtype=np.int64)]
    for batch in pq.ParquetFile(path).iter_batches(columns=["prompt_ids", "chosen_ids", "rejected_ids"]):
        columns = [pc.list_value_length(column).to_numpy(zero_copy_only=False) for column in batch.columns]
        lengths.append(np.sum(columns, axis=0, dtype=np.int64))
    return int(np.concatenate(lengths)[list(rows)].sum())
