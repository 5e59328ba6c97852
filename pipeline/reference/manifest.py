"""The manifest of a finished cache, put together from its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.reference.cache import PLAN, ReferenceCache, StoredFile
from pipeline.reference.plan import HEAD, Piece, Plan, numbers_in
from pipeline.reference.shard_file import ShardFile
from pipeline.reference.statistics import Statistics


def contents(
    cache: ReferenceCache, pass_: str, plan: Plan, files: Mapping[Piece, StoredFile], rows: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The part of a manifest that follows from the files: what shards say of themselves, added up, and where their
    rows come from.

    Args:
        pass_: key of the pass (`pipeline.reference.key.pass_key`).
        files: every piece of the plan.
        rows: contents of the rows of every split's table.

    Raises:
        ArtifactError: when a file is of another pass, or holds other rows than the plan says.
    """
    shards, totals, vocab_size, tensors = [], Statistics(), 0, {}
    for part in plan.parts:
        if part.piece.split == HEAD:
            continue
        stored = files[part.piece]
        file = ShardFile(cache.place, stored.name)
        wanted = [rows[part.piece.split][number] for number in numbers_in(part.rows)]
        if file.metadata.get("pass") != pass_ or json.loads(file.metadata["contents"]) != wanted:
            raise ArtifactError(
                f"reference cache {cache.place.root}: {stored.name} is of another cache (pass "
                f"{file.metadata.get('pass')}), or holds other rows than {PLAN} says: remove it and run the job again"
            )
        statistics = Statistics(**json.loads(file.metadata["statistics"]))
        totals = totals.plus(statistics)
        came = {"from": sorted({source.cache for source in part.sources})} if part.sources else {}
        shards.append(_record(stored) | {"split": part.piece.split, "rows": statistics.pairs} | came)
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
        "origin": origin(plan),
    }


def origin(plan: Plan) -> dict[str, Any]:
    """Pairs that the pass computed for this cache, and those it has from others, by their keys."""
    taken: Counter[str] = Counter()
    for part in plan.parts:
        for source in part.sources:
            taken[source.cache] += part.pairs if source.rows is None else len(numbers_in(source.rows))
    computed = sum(part.pairs for part in plan.parts if not part.sources)
    return {"computed": computed, "taken_over": {key: pairs for key, pairs in sorted(taken.items()) if pairs}}


def _record(stored: StoredFile) -> dict[str, Any]:
    return {"file": stored.name, "bytes": stored.bytes, "sha256": stored.sha256}
