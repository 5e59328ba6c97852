"""Training metrics: JSON lines always, Weights & Biases beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
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


class MetricsLog:
    """Writes rows to a JSONL file and to W&B. Use as a context manager."""

    def __init__(
        self, path: Path, wandb_config: WandbConfig, wandb_dir: Path, name: str, run_config: dict[str, Any]
    ) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._run: Any = None
        mode = wandb_mode(wandb_config)
        if mode != "disabled":
            wandb_dir.mkdir(parents=True, exist_ok=True)
            self._run = _start_wandb(wandb_config, mode, wandb_dir, name, run_config)

    def __enter__(self) -> MetricsLog:
        return self

    def __call__(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._run is not None:
            skip = ("step", "split")
            self._run.log({f"{row['split']}/{k}": v for k, v in row.items() if k not in skip}, step=row["step"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)


def _start_wandb(config: WandbConfig, mode: Any, directory: Path, name: str, run_config: dict[str, Any]) -> Any:
    """A W&B run; one that cannot reach its server becomes an offline one, for a tracker must not end a training."""
    import wandb

    def start(mode: Any) -> Any:
        return wandb.init(
            project=config.project,
            entity=config.entity,
            name=name,
            config=run_config,
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
