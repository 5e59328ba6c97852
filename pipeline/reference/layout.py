"""The files of a reference cache: what is in a shard, byte for byte, and in the head's file.

A shard holds some rows of one split (`pipeline.reference.plan`), as safetensors: memory-mapped, with bfloat16 (which
Arrow lacks), readable by any safetensors library without this project, and nothing in it is executed. With n rows of
two responses each (chosen 2 i, rejected 2 i + 1), N response positions and M kept tokens:

=============  ==================  ============================================================================
tensor         shape, dtype        tiers and content
=============  ==================  ============================================================================
logps          [2 n] float32       all: log-probability (nats) of each response
offsets        [2 n + 1] int64     all: first position of each response
checksum       [n] int64           all: crc32 over the row's bytes in the tensors above and below (`row_checksum`)
hidden         [N, d] model dtype  hidden, exact: final hidden state that predicts each response token
hidden_8bit    [N, d] int8         hidden, 8bit: the same, over its scale
hidden_scale   [N, d / 64] f32     hidden, 8bit: scale of every 64 numbers (rounded up)
counts         [N] int32           topk: tokens kept at the position
ids            [M] int32           topk: those tokens, the likeliest first
log_probs      [M] float32         topk: their log-probabilities (nats)
log_rest       [N] float32         topk: log of the mass of all others
label_logps    [N] float32         topk: log-probability of the response's own token
entries        [2 n + 1] int64     topk: first kept token of each response
=============  ==================  ============================================================================

Metadata: ``format``, ``pass`` (digest of all that decides a row's numbers but the row, `pipeline.reference.key`),
``vocab_size``, ``row_ids`` and ``contents`` (JSON lists: the id of every row where it was computed or copied, and the
sha256 of its tokens) and ``statistics`` (JSON). Nothing in it is the cache's own, for a file may belong to several.

The head's file holds the frozen output head: ``weight [V, d]``, ``bias [V]`` if there is one; metadata ``scale``,
``softcap`` and ``vocab_size``, see `pipeline.risk.head.Head`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.reference.version import FORMAT
from pipeline.risk.head import Head

BY_ENTRY = ("ids", "log_probs")
"""Tensors with one number for every kept token; all others have one row for every position."""

PAYLOAD = ("hidden", "hidden_8bit", "hidden_scale", "counts", "ids", "log_probs", "log_rest", "label_logps")
"""What a row's checksum covers after its logps, in this order, as far as the tier has it."""


@dataclass(frozen=True)
class ShardRow:
    """What the reference says about one pair; ``tensors`` are chosen's and rejected's part of each tensor."""

    row_id: str
    content: str
    lengths: tuple[int, int]
    """Tokens of each response, EOS included."""
    logps: tuple[float, float]
    tensors: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself."""

    pass_key: str
    vocab_size: int


def row_checksum(logps: bytes, payload: Sequence[bytes]) -> int:
    """crc32 of a row: the bytes of its two logps, then of its part of each tensor in the order of `PAYLOAD`."""
    checksum = zlib.crc32(logps)
    for part in payload:
        checksum = zlib.crc32(part, checksum)
    return checksum


def write_shard(path: Path, header: ShardHeader, rows: Sequence[ShardRow], statistics: Mapping[str, Any]) -> None:
    """Write rows in the given order; equal rows give equal bytes."""
    logps = torch.tensor([value for row in rows for value in row.logps], dtype=torch.float32)
    lengths = [length for row in rows for length in row.lengths]
    tensors = {"logps": logps, "offsets": torch.tensor([0, *lengths]).cumsum(0)}
    checksums = []
    for number, row in enumerate(rows):
        payload = [part for name in PAYLOAD if name in row.tensors for part in row.tensors[name]]
        checksums.append(row_checksum(_bytes(logps[2 * number : 2 * number + 2]), [_bytes(part) for part in payload]))
    tensors["checksum"] = torch.tensor(checksums, dtype=torch.int64)
    for name in rows[0].tensors if rows else ():
        tensors[name] = torch.cat([part for row in rows for part in row.tensors[name]]).contiguous()
    if "counts" in tensors:
        kept = [len(part) for row in rows for part in row.tensors["ids"]]
        tensors["entries"] = torch.tensor([0, *kept]).cumsum(0)
    metadata = {
        "format": FORMAT,
        "pass": header.pass_key,
        "vocab_size": str(header.vocab_size),
        "row_ids": json.dumps([row.row_id for row in rows]),
        "contents": json.dumps([row.content for row in rows]),
        "statistics": json.dumps(statistics, sort_keys=True),
    }
    save_file(tensors, path, metadata=metadata)
    _sort_header(path)


def write_head(path: Path, head: Head) -> None:
    """Write the frozen output head."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    metadata = {"format": FORMAT, "scale": repr(head.scale)}
    metadata |= {} if head.softcap is None else {"softcap": repr(head.softcap)}
    metadata |= {} if head.vocab_size is None else {"vocab_size": str(head.vocab_size)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    _sort_header(path)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _sort_header(path: Path) -> None:
    """Put the file's header in a fixed order: safetensors writes metadata in the order of a random hash."""
    path.chmod(0o644)  # and for its own user alone, while a cache is meant to be shared
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries in another order take the same space"
        file.seek(8)
        file.write(text.ljust(size))
