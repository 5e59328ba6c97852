"""A version from the registry into memory, every byte verified."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.models.contents import tokenizer_contents
from pipeline.models.load import context_tokens, load_model, load_tokenizer, torch_dtype, vocabulary_size
from pipeline.release.line import Line
from pipeline.serving.engine import Loaded


def load_version(line: Line, version: int, into: Path, device: torch.device) -> Loaded:
    """Fetch and load a version, in the dtype in which it was saved.

    Args:
        into: where copies go when the registry is on an object store.

    Raises:
        RegistryError: when a byte of it differs from what was registered, or it was removed.
        ModelError: when it cannot be loaded.
    """
    fetched = line.fetch(str(version), into)
    path = fetched.path
    return Loaded(
        version,
        fetched.id,
        load_model(path, _dtype(path)).to(device),
        load_tokenizer(path),
        tokenizer_contents(path),
        context_tokens(path),
        vocabulary_size(path),
        device,
    )


def _dtype(path: Path) -> torch.dtype:
    """As config.json says; transformers has written it under two names."""
    config = json.loads((path / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype")
    return torch_dtype(name if name in ("float32", "bfloat16") else "float32")
