"""Going on with a line of versions: its frozen reference is a run's model, however the data have grown since."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import RunConfig, SFTConfig
from pipeline.models.source import ModelSource
from pipeline.release.registry import open_registry


def on_line(run: RunConfig, root: str, copies: Path) -> tuple[RunConfig, ModelSource]:
    """The run that ``registry.line`` asks for, with the line's full name and its version 0 as the model.

    Args:
        root: of the registry.
        copies: where the reference's files go when the registry is on an object store.

    Raises:
        RegistryError: when there is no such line, or its reference is not whole.
    """
    line = open_registry(root).line(run.registry.line)
    reference = line.fetch("reference", copies).path
    changed = {
        "model": run.model.model_copy(update={"path": str(reference), "revision": None}),
        "sft": SFTConfig(),
        "registry": run.registry.model_copy(update={"line": line.name}),
    }
    # Its contents are known by what makes versions the same: not by its card, and wherever the registry is.
    return run.model_copy(update=changed), ModelSource(reference, line.versions.manifest(0).identity)
