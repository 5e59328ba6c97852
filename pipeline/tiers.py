"""The tiers of a reference cache: the bytes of each, the losses it serves, the options that choose it.

The arithmetic follows the table in `pipeline.reference.layout`. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.config import RISK_METHODS, ReferenceConfig, RunConfig, Tier, tier_fault

Kind = Literal["hidden", "hidden 8bit", "topk", "scalar"]
KINDS: tuple[Kind, ...] = ("hidden", "hidden 8bit", "topk", "scalar")
"""What a cache can hold, from the most exact to the smallest claim on the reference."""

_FLOAT32 = _INT32 = 4
_INT64 = 8
_SCALE_EVERY = 64
"""Numbers of an 8-bit row that share a scale."""

_CONTENT_BYTES = 70
"""One digest in a file's header: 64 digits, their quotes escaped, and a comma."""
_FILE_BYTES = 2_000
"""What a shard takes beside its rows: names and shapes of tensors, statistics, its record in the manifest."""


@dataclass(frozen=True)
class CacheShape:
    """What the bytes of a cache follow from, over all splits it holds."""

    pairs: int
    files: int
    """Shards."""
    id_bytes: int
    """Bytes of the pairs' row ids in the headers of the files (`id_bytes`)."""
    positions: int
    """Tokens of chosen and rejected, EOS included."""
    hidden_size: int
    vocab_size: int
    head_bias: bool
    number_bytes: int
    """Bytes of one number in the model's dtype."""


def cache_bytes(kind: Kind, options: ReferenceConfig, shape: CacheShape, *, least: bool = False) -> int:
    """Bytes of a cache, to within about a kilobyte a file.

    With ``reference.top_mass`` a position of the topk tier keeps at most ``top_k`` tokens, and at least one: the
    answer is the most that it can be, or with ``least`` the least.
    """
    total = shape.files * (_FILE_BYTES + _INT64) + shape.id_bytes
    total += shape.pairs * (2 * _FLOAT32 + _INT64 + 2 * _INT64 + _CONTENT_BYTES)  # logps, checksum, offsets, digest
    if kind == "hidden":
        return total + shape.positions * shape.hidden_size * shape.number_bytes + _head_bytes(shape)
    if kind == "hidden 8bit":
        scales = math.ceil(shape.hidden_size / _SCALE_EVERY) * _FLOAT32
        return total + shape.positions * (shape.hidden_size + scales) + _head_bytes(shape)
    if kind == "topk":
        kept = 1 if least and options.top_mass is not None else min(options.top_k, shape.vocab_size)
        entry, position = _INT32 + _FLOAT32, _INT32 + 2 * _FLOAT32  # id and log-probability; count, rest and label
        offsets = _INT64 * (2 * shape.pairs + shape.files)
        return total + shape.positions * (position + kept * entry) + offsets
    return total


def _head_bytes(shape: CacheShape) -> int:
    return shape.vocab_size * (shape.hidden_size + shape.head_bias) * shape.number_bytes


def id_bytes(row_ids: Iterable[str]) -> int:
    """Bytes of row ids in the headers of a cache's files: a JSON list inside a JSON text."""
    return sum(len(json.dumps(json.dumps(row_id))) for row_id in row_ids)


def chosen_kind(options: ReferenceConfig) -> Kind:
    """What a run's cache holds."""
    if options.tier == "hidden":
        return "hidden" if options.hidden_rows == "exact" else "hidden 8bit"
    return options.tier


def serves(kind: Kind, run: RunConfig) -> bool:
    """Whether such a cache holds what the run's loss needs."""
    return tier_fault(_tier(kind), run.loss.method, run.risk.measure) is None


def loss_name(run: RunConfig) -> str:
    """For a reader: "dpo", "ra_dpo2 with cvar"."""
    method = run.loss.method
    return f"{method} with {run.risk.measure}" if method in RISK_METHODS else method


def is_upper_bound(kind: Kind, options: ReferenceConfig) -> bool:
    """Whether `cache_bytes` is only the most that such a cache can take."""
    return kind == "topk" and options.top_mass is not None


def kind_name(kind: Kind, options: ReferenceConfig) -> str:
    """For a reader: "hidden, 8bit", "topk, 64 tokens a position"."""
    if kind == "topk":
        most = "at most " if is_upper_bound(kind, options) else ""
        return f"topk, {most}{options.top_k:,} tokens a position"
    return kind.replace(" ", ", ")


def choosing(kind: Kind, options: ReferenceConfig) -> str:
    """Command-line options that turn a run with these options to ``kind``; empty for the kind it has."""
    wanted = {
        "tier": _tier(kind),
        "hidden_rows": "8bit" if kind == "hidden 8bit" else "exact",
        "top_mass": options.top_mass if kind == "topk" else None,
    }
    have = options.model_dump()
    return " ".join(f"--reference.{name} {value}" for name, value in wanted.items() if have[name] != value)


def _tier(kind: Kind) -> Tier:
    return "hidden" if kind == "hidden 8bit" else kind
