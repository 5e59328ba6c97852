"""What this process runs in, and where it therefore keeps its runs (nothing heavy is imported here)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

SCRATCH = "RA_DPO_SCRATCH"
"""The environment's variable for the directory in which a node keeps what it has fetched from a URL."""


def inside_ray_job() -> bool:
    """Whether this process is the entrypoint of a submitted Ray job (its working directory is a copy)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def default_storage() -> str:
    """``./runs``; for a submitted job, whose working directory is an unpacked copy, a directory in the home."""
    return str(Path.home() / "ra-dpo-runs") if inside_ray_job() else "runs"


def scratch() -> Path:
    """Where this node keeps what it fetches from a URL and what it will send there: `SCRATCH`, else ~/.cache/ra-dpo,
    or a directory for temporary files where the home cannot be written."""
    if given := os.environ.get(SCRATCH):
        return Path(given).expanduser().absolute()
    cache = Path.home() / ".cache"
    above = next(path for path in (cache, *cache.parents) if path.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return cache / "ra-dpo"
    return Path(tempfile.gettempdir()) / f"ra-dpo-{os.getuid()}" / "scratch"


def node_scratch(url: str) -> Path:
    """This node's directory for one URL, whatever the node and its user are called."""
    return scratch() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
