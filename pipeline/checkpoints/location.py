"""Where trainings keep their checkpoints."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def run_directory(root: str, stage: str, key: str) -> str:
    """Where a training stage keeps its checkpoints until its artefact is committed.

    Args:
        root: of the storage, a directory or a URL.
    """
    return f"{root}/checkpoints/{stage}-{key[:16]}"


def held_bytes(directory: Path) -> int:
    """What a run directory holds; 0 when there is none."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running job removes older checkpoints
                total += os.stat(os.path.join(folder, name)).st_size
    return total
