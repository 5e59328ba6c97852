"""Reading a reference artefact at the trainer: by row id, memory-mapped, checked against the tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import ArtifactError
from pipeline.records import PairTokens
from pipeline.reference.shards import HEAD_FILE, read_head
from pipeline.risk.head import Head


class ReferenceReader:
    """What the reference says about the pairs of one split.

    Args:
        device: where the head is put.
        dtype: of the head and the hidden states.

    Raises:
        ArtifactError: when a pair is not in the artefact, or was computed for other tokens.
    """

    def __init__(
        self, directory: Path, split: str, pairs: Sequence[PairTokens], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.head: Head | None = None
        self._dtype = dtype
        if (directory / HEAD_FILE).is_file():
            self.head = read_head(directory, device, dtype)
        self._files: list[Any] = []
        self._offsets: list[Tensor] = []
        self._logps: list[Tensor] = []
        self._where: dict[str, tuple[int, int]] = {}
        contents: dict[str, str] = {}
        for path in sorted(directory.glob(f"{split}-*.safetensors")):
            file = safe_open(path, framework="pt").__enter__()
            metadata = file.metadata()
            row_ids = json.loads(metadata["row_ids"])
            contents.update(zip(row_ids, json.loads(metadata["contents"]), strict=True))
            for position, row_id in enumerate(row_ids):
                self._where[row_id] = (len(self._files), position)
            self._logps.append(file.get_tensor("logps"))
            if self.head is not None:
                self._offsets.append(file.get_tensor("offsets"))
            self._files.append(file)
        for pair in pairs:
            if pair.row_id not in self._where:
                raise ArtifactError(f"the reference in {directory} has no row {pair.row_id!r} in split {split!r}")
            if contents[pair.row_id] != pair.content:
                raise ArtifactError(
                    f"the reference in {directory} was computed for other tokens of row {pair.row_id!r}; "
                    "remove the directory and run again"
                )

    def logps(self, row_id: str) -> tuple[float, float]:
        """Log-probabilities (nats) of chosen and rejected."""
        shard, row = self._where[row_id]
        chosen, rejected = self._logps[shard][2 * row : 2 * row + 2].tolist()
        return chosen, rejected

    def hidden(self, row_id: str) -> tuple[Tensor, Tensor]:
        """Final hidden states at the response positions: ``[T_chosen, d]``, ``[T_rejected, d]``, on CPU, in the dtype
        of the head (an actor without a GPU may have computed them in another one)."""
        shard, row = self._where[row_id]
        start, middle, end = self._offsets[shard][2 * row : 2 * row + 3].tolist()
        both = self._files[shard].get_slice("hidden")[start:end].to(self._dtype)
        return both[: middle - start], both[middle - start :]
