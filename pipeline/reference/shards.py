"""Files of a reference artefact.

For each split, fixed ranges of ``rows_per_shard`` rows become ``<split>-00000.safetensors`` and so on, with

* ``logps`` ``[2 n]`` float32: log-probability (nats) of chosen (2 i) and rejected (2 i + 1) of row i;
* ``offsets`` ``[2 n + 1]`` int64 and ``hidden`` ``[offsets[-1], d]`` in the model's dtype (hidden tier only): the
  final hidden states at the response positions, chosen and rejected of one row after the other;
* metadata ``row_ids`` and ``contents``: JSON lists, the ids of the rows and the digests of their tokens.

``head.safetensors`` holds the frozen output head (``weight [V, d]``, ``bias [V]`` if there is one; metadata ``scale``,
``softcap`` and ``vocab_size``, see `pipeline.risk.head.Head`). Safetensors
because it is memory-mapped, knows bfloat16 (Arrow does not) and executes nothing when it is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.risk.head import Head

HEAD_FILE = "head.safetensors"


def shard_path(directory: Path, split: str, index: int) -> Path:
    """Where shard ``index`` of a split is."""
    return directory / f"{split}-{index:05d}.safetensors"


@dataclass(frozen=True)
class ShardRow:
    """What the reference says about one pair; ``hidden`` is (``[T_chosen, d]``, ``[T_rejected, d]``) or None."""

    row_id: str
    content: str
    logps: tuple[float, float]
    hidden: tuple[Tensor, Tensor] | None


def write_shard(path: Path, rows: list[ShardRow]) -> None:
    """Write rows in the given order; equal rows give equal bytes."""
    tensors = {"logps": torch.tensor([value for row in rows for value in row.logps], dtype=torch.float32)}
    pieces = [piece for row in rows if row.hidden is not None for piece in row.hidden]
    if pieces:
        lengths = torch.tensor([0, *(len(piece) for piece in pieces)])
        tensors["offsets"] = lengths.cumsum(0)
        tensors["hidden"] = torch.cat(pieces).contiguous()
    metadata = {
        "row_ids": json.dumps([row.row_id for row in rows]),
        "contents": json.dumps([row.content for row in rows]),
    }
    save_file(tensors, path, metadata=metadata)
    _sort_header(path)


def write_head(directory: Path, head: Head) -> None:
    """Write the frozen output head."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    metadata = {"scale": repr(head.scale)} | ({} if head.softcap is None else {"softcap": repr(head.softcap)})
    metadata |= {} if head.vocab_size is None else {"vocab_size": str(head.vocab_size)}
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        directory / HEAD_FILE,
        metadata=metadata,
    )
    _sort_header(directory / HEAD_FILE)


def read_head(directory: Path, device: torch.device, dtype: torch.dtype) -> Head:
    """Read the frozen output head."""
    with safe_open(directory / HEAD_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name).to(device, dtype) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    softcap, vocab_size = metadata.get("softcap"), metadata.get("vocab_size")
    return Head(
        tensors["weight"],
        tensors.get("bias"),
        float(metadata.get("scale", 1.0)),
        None if softcap is None else float(softcap),
        None if vocab_size is None else int(vocab_size),
    )


def _sort_header(path: Path) -> None:
    """Put the file's header in a fixed order: safetensors writes metadata in the order of a random hash."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries in another order take the same space"
        file.seek(8)
        file.write(text.ljust(size))
