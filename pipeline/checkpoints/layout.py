"""The files of a checkpoint, byte for byte.

A training keeps its checkpoints in one run directory::

    run.json                    what the run is (see `pipeline.checkpoints.identity`), sealed
    metrics.jsonl               the metrics so far, for people to follow; nothing reads it
    skipped/step-00000007.json  a batch whose loss or gradient was not finite, with its row ids
    step-00000040/              one checkpoint: everything after 40 optimiser steps
        rank-00000.safetensors  what that worker held
        metrics.jsonl           the metrics up to that step
        checkpoint.json         the manifest, sealed: a checkpoint is there when it is there

A worker's file holds flat float32 slices: tensors ``weight/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME`` are the
numbers ``start`` to ``start + length`` of the parameter NAME in row-major order, of its master weight and of Adam's
two moments; ``start`` is in the metadata, under ``starts``. All files together hold every number exactly once, so any
number of workers can read its own part of it. Beside them lie the states of the random generators (``rng/torch``,
``rng/cuda`` bytes; ``rng/numpy``, ``rng/python`` 32-bit words as int64; the rest of these states in the metadata).

Nothing in a checkpoint is executed when it is read: it is safetensors and JSON, and files that the manifest does not
name are not opened.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from pipeline.disk import fsync

FORMAT = 2
"""Raised when an older version of this program could not read what is written."""

MANIFEST = "checkpoint.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
SKIPPED = "skipped"
KINDS = ("weight", "exp_avg", "exp_avg_sq")

_CHUNK_BYTES = 1 << 20
_DTYPES = {torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64"}


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint as its manifest names it.

    Its digest is BLAKE3: as hard to forge as SHA-256 and several times as fast, which training beside it feels.
    """

    name: str
    bytes: int
    blake3: str


@dataclass(frozen=True)
class Slice:
    """One worker's part of one parameter: flat float32 views of equal length into the optimiser's own memory."""

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def step_name(step: int) -> str:
    """Name of the directory of a checkpoint, or of what else belongs to a step."""
    return f"step-{step:08d}"


def write_rows(path: Path, rows: bytes) -> StoredFile:
    """Write the metrics of a checkpoint, safe on the disk when this returns."""
    path.write_bytes(rows)
    fsync(path)
    return StoredFile(path.name, len(rows), blake3(rows).hexdigest())


def digest_of(path: Path) -> str:
    """BLAKE3 (hex) of a file's bytes."""
    digest = blake3()
    with path.open("rb") as file:  # no memory map: it would answer a bad sector with the end of the process
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> StoredFile:
    """Write contiguous CPU tensors as safetensors, safe on the disk when this returns, hashed on the way.

    The library's own writer copies every tensor while it holds the interpreter's lock; this one runs beside a
    training, so it writes from the tensors' memory.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    digest = blake3()
    with path.open("wb") as file:
        chunks: Iterator[bytes | memoryview] = (_memory(tensor) for tensor in tensors.values())
        for chunk in itertools.chain([len(text).to_bytes(8, "little"), text], chunks):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(path.name, 8 + len(text) + position, digest.hexdigest())


def _memory(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")


def as_json(file: StoredFile) -> dict[str, Any]:
    return asdict(file)
