"""A line of small versions for the tests of the guard (not a test: shared by tests)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx

from pipeline.release.line import Line
from pipeline.release.registry import open_registry

LINE = "0123456789abcdef"
ALIAS = "production"

OpenGuard = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
"""Opens a guard with options on a test's own storage, and gives a client of it."""


def write_versions(model: Path, folder: Path, count: int) -> list[Path]:
    """Directories of so many models of a model's shape, with other weights each."""
    import torch
    from safetensors.torch import load_file, save_file

    made = []
    for number in range(count):
        path = shutil.copytree(model, folder / str(number))
        generator = torch.Generator().manual_seed(number)
        weights = load_file(path / "model.safetensors")
        noisy = {name: one + 0.3 * torch.randn(one.shape, generator=generator) for name, one in weights.items()}
        save_file(noisy, path / "model.safetensors", metadata={"format": "pt"})
        (path / "README.md").write_text(f"Model {number}.")
        made.append(path)
    return made


def begin_line(root: str, models: Sequence[Path]) -> Line:
    """A line whose versions are these models; production came to the last one by way of all the others."""
    line = open_registry(root).begin(LINE, models[0], "a small model", {})
    for number, model in enumerate(models[1:], start=1):
        line.register(model, {}, why="a test")
        line.decide(ALIAS, number, number, seen=line.alias(ALIAS).moved_by, why="it holds", details={"gate": {}})
    return line
