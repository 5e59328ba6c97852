"""A reference cache written in this process, as the actors write it (not a test: shared by tests)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import ReferenceConfig
from pipeline.data.tables import write_table
from pipeline.models.load import output_head
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache, StoredFile
from pipeline.reference.compute import reference_rows
from pipeline.reference.cover import fixed_parts
from pipeline.reference.donors import plan_of
from pipeline.reference.key import pass_key
from pipeline.reference.layout import ShardHeader, write_head, write_shard
from pipeline.reference.manifest import contents
from pipeline.reference.plan import HEAD, Part, Plan, numbers_in
from pipeline.reference.reader import CachedRows, OpenCache
from pipeline.reference.statistics import shard_statistics
from pipeline.reference.takeover import TakeOver

CPU = torch.device("cpu")
KEY = "0" * 32
PASS = "1" * 32
TOKENIZER = "7" * 64


def random_pairs(count: int, seed: int = 0, vocab: int = 40) -> list[PairTokens]:
    """Pairs of up to 6 + 12 tokens with ids row0, row1, ..."""
    rng = random.Random(seed)

    def ids(longest: int) -> list[int]:
        return [rng.randrange(1, vocab) for _ in range(rng.randint(1, longest))]

    made = []
    for number in range(count):
        prompt, chosen, rejected = ids(6), ids(12), ids(12)
        content = hashlib.sha256(str((prompt, chosen, rejected)).encode()).hexdigest()
        made.append(PairTokens(f"row{number}", "group", prompt, chosen, rejected, content))
    return made


def description(rows: Mapping[str, int], options: ReferenceConfig, tokenizer: str = TOKENIZER) -> dict[str, object]:
    compute = {"dtype": "float32", "device": "cpu", "threads": 1, "batch_tokens": options.batch_tokens}
    return {
        "key": KEY,
        "made_from": {
            "model": "5" * 64,
            "tokenizer": tokenizer,
            "truncation": {"max_prompt_tokens": 6, "max_response_tokens": 12, "overlong": "drop"},
            "data": dict.fromkeys(rows, "6" * 64),
            "tier": {"name": options.tier},
            "compute": compute | {"rows_per_shard": options.rows_per_shard, "libraries": {"torch": "1"}},
        },
        "names": {"model": "tiny", "data": "random"},
        "rows": dict(rows),
    }


def write_piece(
    cache: ReferenceCache,
    part: Part,
    model: nn.Module,
    pairs: Sequence[PairTokens],
    options: ReferenceConfig,
    pass_: str = PASS,
) -> StoredFile:
    """Compute and commit one file; ``pairs`` are those of its split."""
    with cache.place.scratch() as scratch:
        local = scratch / "file"
        if part.piece.split == HEAD:
            write_head(local, output_head(model))
            return cache.commit(part.piece, local)
        mine = [pairs[number] for number in numbers_in(part.rows)]
        rows, error = reference_rows(model, mine, options, pad_id=0, device=CPU, packed=True)
        header = ShardHeader(pass_, output_head(model).num_tokens)
        write_shard(local, header, rows, shard_statistics(mine, rows, error, True).as_dict())
        return cache.commit(part.piece, local)


def write_cache(
    root: str | Path,
    model: nn.Module,
    splits: Mapping[str, Sequence[PairTokens]],
    tokenizer: str = TOKENIZER,
    **options: object,
) -> Place:
    """A finished cache at ``root``; ``tokenizer`` is its digest, ``options`` are those of `ReferenceConfig`."""
    config = ReferenceConfig(**({"rows_per_shard": 3, "batch_tokens": 64} | options))  # type: ignore[arg-type]
    cache = ReferenceCache(Place(str(root)))
    rows = {split: len(pairs) for split, pairs in splits.items()}
    said = description(rows, config, tokenizer)
    cache.start(said)
    plan = Plan(tuple(fixed_parts(rows, config.rows_per_shard, config.tier == "hidden")))
    cache.settle(plan)
    files = {
        part.piece: write_piece(cache, part, model, splits.get(part.piece.split, ()), config) for part in plan.parts
    }
    contained = {split: [pair.content for pair in pairs] for split, pairs in splits.items()}
    cache.finish(said | contents(cache, PASS, plan, files, contained))
    return cache.place


def grow(
    root: Place, key: str, model: nn.Module, splits: Mapping[str, Sequence[PairTokens]], folder: Path, **options: object
) -> Growth:
    """The cache ``key`` at ``root``, which takes over what it can, as the stage does it; ``folder`` is for tables."""
    config = ReferenceConfig(**({"rows_per_shard": 3, "batch_tokens": 64} | options))  # type: ignore[arg-type]
    cache, said = ReferenceCache(root.below(key)), []
    rows = {split: len(pairs) for split, pairs in splits.items()}
    for split, pairs in splits.items():
        write_table(folder / f"{split}.parquet", pairs, PairTokens)
    described = description(rows, config) | {"key": key}
    pass_ = pass_key(described["made_from"])  # type: ignore[arg-type]
    cache.start(described)
    contained = {split: [pair.content for pair in pairs] for split, pairs in splits.items()}
    found = cache.verify()
    cache.remove(found.damaged)
    here = {piece: stored.name for piece, stored in found.files.items()}
    plan = plan_of(cache, root, described["made_from"], here, contained, said.append)  # type: ignore[arg-type]
    cache.settle(plan)
    sourced = [part for part in found.missing(plan) if part.sources]
    files = found.files | TakeOver(cache, root, folder, pass_).parts(sourced, lambda part: None)
    plan = plan.computing({part.piece for part in sourced if part.piece not in files})
    computed = [part for part in plan.parts if part.piece not in files]
    files |= {
        part.piece: write_piece(cache, part, model, splits.get(part.piece.split, ()), config, pass_)
        for part in computed
    }
    manifest = cache.finish(described | contents(cache, pass_, plan, files, contained))
    ids = {
        splits[part.piece.split][number].row_id
        for part in computed
        if part.piece.split != HEAD
        for number in numbers_in(part.rows)
    }
    return Growth(cache.place, plan, manifest, ids, said)


@dataclass(frozen=True)
class Growth:
    """What `grow` made."""

    place: Place
    plan: Plan
    manifest: dict[str, Any]
    computed: set[str]
    """Ids of the rows that passed the model."""
    said: list[str]


def read_rows(place: Place, split: str, pairs: Sequence[PairTokens], dtype: torch.dtype = torch.float32) -> CachedRows:
    return OpenCache(place, device=CPU, dtype=dtype).rows(split, pairs)
