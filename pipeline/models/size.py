"""What the weight files of a model directory say of its size, from their headers alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError

_HEAD_BIASES = frozenset({"lm_head.bias", "embed_out.bias"})
"""Names of an output head's bias."""


@dataclass(frozen=True)
class StoredSize:
    """What lies in a model's weight files."""

    parameters: int
    """Numbers; weights shared by embedding and head count once."""
    head_bias: bool
    """Whether the output head adds a number for every token."""


def stored_size(directory: Path) -> StoredSize:
    """Size of the safetensors model in a directory.

    Raises:
        ModelError: when a weight file is none.
    """
    from safetensors import SafetensorError, safe_open

    parameters, biased = 0, False
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="np") as file:
                biased |= not _HEAD_BIASES.isdisjoint(file.keys())
                parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model.path: {path} is no safetensors file ({error}); fetch or save it again") from error
    return StoredSize(parameters, biased)


def weight_files(directory: Path) -> list[Path]:
    """The files with the weights: one, those an index names, or whatever ``*.safetensors`` there are."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(directory.glob("*.safetensors"))
