"""Reading any part of a verified checkpoint, whatever number of workers wrote it."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.layout import KINDS
from pipeline.errors import ArtifactError


class CheckpointReader:
    """Slices of parameters and moments, read from the files that hold them by memory map.

    Args:
        path: directory of a checkpoint whose files have been verified.
        manifest: what its manifest says.

    Raises:
        ArtifactError: when the files do not hold every number of every parameter exactly once.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        from safetensors import safe_open

        self.path = path
        self.manifest = manifest
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in manifest["parameters"].items()}
        self._files = [safe_open(path / one["name"], framework="pt") for one in manifest["files"]]
        self._parts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in self.shapes}
        for number, file in enumerate(self._files):
            for name, start in json.loads(file.metadata()["starts"]).items():
                length = file.get_slice(f"{KINDS[0]}/{name}").get_shape()[0]
                self._parts[name].append((start, start + length, number))
        for name, parts in self._parts.items():
            parts.sort()
            ends = [0, *(stop for _, stop, _ in parts)]
            if [start for start, _, _ in parts] != ends[:-1] or ends[-1] != _count(self.shapes[name]):
                raise ArtifactError(f"{path}: its files do not hold every number of {name} exactly once")

    @property
    def step(self) -> int:
        step: int = self.manifest["step"]
        return step

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Numbers ``start`` to ``stop`` (the end) of one kind of a parameter's flat numbers, ``[stop - start]``."""
        parts = self._parts[name]
        stop = _count(self.shapes[name]) if stop is None else stop
        found = torch.empty(stop - start)
        first = max(0, bisect.bisect_right(parts, start, key=lambda part: part[0]) - 1)
        for low, high, number in parts[first:]:
            if low >= stop:
                break
            a, b = max(low, start), min(high, stop)
            if a < b:
                found[a - start : b - start] = self._files[number].get_slice(f"{kind}/{name}")[a - low : b - low]
        return found

    def whole(self, kind: str, name: str) -> Tensor:
        """All numbers of one kind of a parameter, in its shape."""
        return self.read(kind, name).view(self.shapes[name])

    def rng(self, rank: int) -> tuple[dict[str, Tensor], str] | None:
        """What `pipeline.checkpoints.rng.capture` gave that rank; None if there was no such rank."""
        if rank >= len(self._files):
            return None
        file = self._files[rank]
        names = [name for name in file.keys() if name.startswith("rng/")]  # noqa: SIM118 - a handle, no mapping
        return {name: file.get_tensor(name) for name in names}, file.metadata()["rng"]


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
