"""The rows of one shard, wherever it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import Tensor

from pipeline.reference.layout import BY_ENTRY, PAYLOAD, row_checksum
from pipeline.reference.shard_file import ShardFile


@dataclass(frozen=True)
class StoredRow:
    """What is stored of one pair: log-probabilities (nats) of both responses, and their part of each tensor."""

    logps: tuple[float, float]
    chosen: dict[str, Tensor]
    rejected: dict[str, Tensor]


class StoredShard:
    """A file and its small tensors; the large ones are read row by row."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self.row_ids: list[str] = json.loads(file.metadata["row_ids"])
        self.contents: list[str] = json.loads(file.metadata["contents"])
        self.payload = [name for name in PAYLOAD if name in file.tensors]
        self._logps = file.bytes_of("logps", 0, 2 * len(self.row_ids))
        self._checksums = file.tensor("checksum").tolist()
        self._bounds = {"offsets": file.tensor("offsets").tolist()}
        if "entries" in file.tensors:
            self._bounds["entries"] = file.tensor("entries").tolist()

    def read(self, number: int) -> StoredRow:
        """Row ``number`` of the file.

        Raises:
            ArtifactError: when its bytes differ from their checksum.
        """
        logps = self._logps[8 * number : 8 * number + 8]
        raw, cuts = {}, {}
        for name in self.payload:
            start, middle, end = self._bounds["entries" if name in BY_ENTRY else "offsets"][2 * number : 2 * number + 3]
            raw[name], cuts[name] = self._file.bytes_of(name, start, end), middle - start
        if row_checksum(logps, list(raw.values())) != self._checksums[number]:
            raise self._file.damaged_row(self.row_ids[number])
        whole = {name: self._file.decode(name, data) for name, data in raw.items()}
        chosen, rejected = self._file.decode("logps", logps).tolist()
        return StoredRow(
            (chosen, rejected),
            {name: tensor[: cuts[name]] for name, tensor in whole.items()},
            {name: tensor[cuts[name] :] for name, tensor in whole.items()},
        )
