"""Random access to a shard wherever it is: memory-mapped on a local disk, by ranges of bytes elsewhere.

Safetensors is eight bytes of length, a JSON header of that length, then the tensors' bytes; the header says where
each begins. The library's own reader wants a local file.
"""

from __future__ import annotations

import json
import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.version import READABLE

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}


class Maps:
    """Memory maps of a place's files, the last used ones: each holds a descriptor, of which a process has few."""

    def __init__(self, place: Place, most: int = 256) -> None:
        self._place, self._most = place, most
        self._maps: OrderedDict[str, mmap.mmap | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> mmap.mmap | None:
        """The map of a file; None on a remote place."""
        with self._lock:
            if name not in self._maps:
                self._maps[name] = self._place.map(name)
            self._maps.move_to_end(name)
            while len(self._maps) > self._most:
                self._maps.popitem(last=False)
            return self._maps[name]


class ShardFile:
    """One safetensors file of a cache.

    Args:
        maps: shared by the files of a place when there are many.

    Raises:
        ArtifactError: when it is missing, cut short or no such file.
    """

    def __init__(self, place: Place, name: str, maps: Maps | None = None) -> None:
        self._place, self._name = place, name
        self._maps = maps or Maps(place)
        size = place.size(name)
        if size is None:
            raise self._missing()
        try:
            length = int.from_bytes(self._read(0, 8), "little")
            header = json.loads(self._read(8, 8 + length))
            self.metadata: Mapping[str, str] = header.pop("__metadata__")
            self._tensors: Mapping[str, Any] = header
            self._start = 8 + length
            end = self._start + max(one["data_offsets"][1] for one in header.values())
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged("its header cannot be read") from error
        if end != size:
            raise self._damaged(f"it has {size:,} bytes, its header says {end:,}")
        if self.metadata.get("format") not in READABLE:
            raise ArtifactError(
                f"reference cache {place.root}: {name} is of another version ({self.metadata.get('format')!r}, this "
                f"one reads {' and '.join(READABLE)}); remove the directory and run the job again"
            )

    def _missing(self) -> ArtifactError:
        return ArtifactError(f"reference cache {self._place.root}: {self._name} is missing; run the job again")

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"reference cache {self._place.root}: {self._name} is damaged: {why}; run the job again, which computes "
            "only this file anew"
        )

    def damaged_row(self, row_id: str) -> ArtifactError:
        """What to raise for a row whose bytes do not agree with its checksum."""
        return self._damaged(f"row {row_id!r} differs from its checksum")

    def _read(self, start: int, stop: int) -> bytes:
        try:
            mapped = self._maps.get(self._name)
            data = self._place.read(self._name, start, stop) if mapped is None else mapped[start:stop]
        except FileNotFoundError as error:
            raise self._missing() from error
        if len(data) != stop - start:
            raise ValueError("the file ends early")
        return data

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of every tensor."""
        return {name: (_DTYPES[one["dtype"]], tuple(one["shape"])) for name, one in self._tensors.items()}

    def bytes_of(self, name: str, start: int, stop: int) -> bytes:
        """Raw bytes of the rows ``start`` to ``stop`` of a tensor."""
        one = self._tensors[name]
        row = _DTYPES[one["dtype"]].itemsize * math.prod(one["shape"][1:])
        first = self._start + one["data_offsets"][0]
        try:
            return self._read(first + start * row, first + stop * row) if stop > start else b""
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def decode(self, name: str, data: bytes) -> Tensor:
        """The rows of a tensor that `bytes_of` gave."""
        one = self._tensors[name]
        # A copy of its own: torch wants memory that may be written.
        flat = torch.frombuffer(bytearray(data), dtype=_DTYPES[one["dtype"]]) if data else torch.empty(0)
        return flat.to(_DTYPES[one["dtype"]]).view(-1, *one["shape"][1:])

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.decode(name, self.bytes_of(name, 0, self._tensors[name]["shape"][0]))
