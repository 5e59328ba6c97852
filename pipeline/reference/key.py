"""What a reference cache is a function of, and nothing else: its key.

Contents, not names: the bytes of the model's files, of its tokenizer and chat template, and of the tokens. Options
of the pass that decide a bit of the result are in it; options of training, of the cluster and of where the cache
is kept are not, so that all trials of a sweep find the same one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import ReferenceConfig, RunConfig
from pipeline.digests import digest_json
from pipeline.models.contents import tokenizer_contents, weights_contents
from pipeline.records import Split
from pipeline.reference.version import FORMAT, NUMBERS

SPLITS: tuple[Split, ...] = ("train", "validation")
"""Splits that a cache holds: test pairs are scored by evaluation, which has both models at hand for every method."""

LIBRARIES = ("torch", "transformers")
"""Another version may compute other last digits."""


def cache_parts(run: RunConfig, model_dir: Path, tokens_dir: Path) -> dict[str, Any]:
    """The full key, readable: what made the cache, part by part."""
    options, data = run.reference, run.data
    return {
        "format": FORMAT,
        "numbers": NUMBERS,
        "model": weights_contents(model_dir),
        "tokenizer": tokenizer_contents(model_dir),
        "truncation": {
            "max_prompt_tokens": data.max_prompt_tokens,
            "max_response_tokens": data.max_response_tokens,
            "overlong": data.overlong,
        },
        "data": {split: tokens_digest(tokens_dir / f"{split}.parquet") for split in SPLITS},
        "tier": tier_parts(options),
        "compute": {
            "dtype": run.model.dtype,
            "device": "cuda" if run.cluster.gpus_per_actor > 0 else "cpu",
            "threads": options.threads,
            "batch_tokens": options.batch_tokens,
            "rows_per_shard": options.rows_per_shard,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }


def tier_parts(options: ReferenceConfig) -> dict[str, Any]:
    """The options that the tier heeds."""
    parts: dict[str, Any] = {"name": options.tier}
    if options.tier == "hidden":
        parts["rows"] = options.hidden_rows
    if options.tier == "topk":
        parts |= {"top_k": options.top_k, "top_mass": options.top_mass}
    return parts


def cache_key(parts: dict[str, Any]) -> str:
    """The name of the cache."""
    return digest_json(parts)[:32]


def pass_key(parts: Mapping[str, Any]) -> str:
    """What decides the numbers of a row beside the row itself: caches of the same pass may share rows, whatever their
    data are and in whatever version of the files' layout they are written."""
    return digest_json({name: part for name, part in parts.items() if name not in ("data", "format")})[:32]


def row_contents(tokens_dir: Path) -> dict[str, list[str]]:
    """sha256 of the tokens of every row, in the order of the splits' tables."""
    import pyarrow.parquet as pq

    return {
        split: pq.read_table(tokens_dir / f"{split}.parquet", columns=["content"])["content"].to_pylist()
        for split in SPLITS
    }


def tokens_digest(path: Path) -> str:
    """sha256 over ids and token digests of a table's rows, in their order, a batch of rows in memory at a time."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    for batch in pq.ParquetFile(path).iter_batches(columns=["row_id", "content"]):
        for row_id, content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{len(row_id)}:{row_id}{content}".encode())
    return digest.hexdigest()
