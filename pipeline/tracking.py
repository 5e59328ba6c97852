"""Runs of Weights & Biases: whether, and how, one is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import WandbConfig


def wandb_mode(config: WandbConfig) -> Any:
    """``online``, ``offline`` or ``disabled``; ``auto`` asks whether an API key is configured."""
    if config.mode != "auto":
        return config.mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text())
    return "online" if has_key else "offline"


def start_run(
    config: WandbConfig,
    mode: Any,
    directory: Path,
    name: str,
    run_config: Mapping[str, Any],
    job_type: str | None = None,
) -> Any:
    """A W&B run; one that cannot reach its server becomes an offline one, for a tracker must not end a training."""
    import wandb

    directory.mkdir(parents=True, exist_ok=True)

    def start(mode: Any) -> Any:
        return wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            id=name,  # so that a training that goes on after a crash is the same run there
            resume=None if mode == "offline" else "allow",
            config=dict(run_config),
            job_type=job_type,
            dir=str(directory),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    try:
        return start(mode)
    except wandb.errors.Error:
        if mode == "offline" or config.mode == "online":
            raise
        return start("offline")
