"""What this process runs in, and where it therefore keeps its runs (nothing heavy is imported here)."""

from __future__ import annotations

import os
from pathlib import Path


def inside_ray_job() -> bool:
    """Whether this process is the entrypoint of a submitted Ray job (its working directory is a copy)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def default_storage() -> str:
    """``./runs``; for a submitted job, whose working directory is an unpacked copy, a directory in the home."""
    return str(Path.home() / "ra-dpo-runs") if inside_ray_job() else "runs"
