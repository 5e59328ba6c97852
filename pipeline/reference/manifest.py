"""The manifest of a finished cache, put together from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.reference.cache import HEAD, Piece, ReferenceCache, StoredFile
from pipeline.reference.shard_file import ShardFile
from pipeline.reference.statistics import Statistics


def contents(cache: ReferenceCache, key: str, files: Mapping[Piece, StoredFile], per_shard: int) -> dict[str, Any]:
    """The part of a manifest that follows from the files: what shards say of themselves, added up.

    Args:
        files: every piece of the cache, in the order of the manifest.
        per_shard: pairs in a file.

    Raises:
        ArtifactError: when a file belongs to another cache.
    """
    shards, totals, vocab_size, tensors = [], Statistics(), 0, {}
    for piece, stored in files.items():
        if piece.split == HEAD:
            continue
        file = ShardFile(cache.place, stored.name)
        said = file.metadata["key"], file.metadata["split"], int(file.metadata["first_row"])
        if said != (key, piece.split, piece.index * per_shard):
            raise ArtifactError(
                f"reference cache {cache.place.root}: {stored.name} is of another cache (key {said[0]}, rows of "
                f"{said[1]} from {said[2]}): remove it and run the job again"
            )
        statistics = Statistics(**json.loads(file.metadata["statistics"]))
        totals = totals.plus(statistics)
        range_of_rows = {"split": piece.split, "first_row": piece.index * per_shard, "rows": statistics.pairs}
        shards.append(_record(stored) | range_of_rows)
        vocab_size = int(file.metadata["vocab_size"])
        tensors = {
            name: {"dtype": str(dtype).removeprefix("torch."), "row_shape": list(shape[1:])}
            for name, (dtype, shape) in sorted(file.tensors.items())
        }
    head = files.get(Piece(HEAD))
    return {
        "shards": shards,
        "head": None if head is None else _record(head),
        "vocab_size": vocab_size,
        "tensors": tensors,
        "statistics": totals.as_dict(),
    }


def _record(stored: StoredFile) -> dict[str, Any]:
    return {"file": stored.name, "bytes": stored.bytes, "sha256": stored.sha256}
