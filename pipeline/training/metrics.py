"""Training metrics in Weights & Biases, beside the JSON lines of the run directory."""

from __future__ import annotations

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


class Tracker:
    """Sends rows of metrics to W&B. Use as a context manager."""

    def __init__(self, config: WandbConfig, directory: Path, name: str, run_config: dict[str, Any]) -> None:
        self._run: Any = None
        mode = wandb_mode(config)
        if mode != "disabled":
            directory.mkdir(parents=True, exist_ok=True)
            self._run = _start_wandb(config, mode, directory, name, run_config)

    def __enter__(self) -> Tracker:
        return self

    def __call__(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
            self._run.log({f"{row['split']}/{name}": value for name, value in numbers.items()}, step=row["step"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
            id=name,  # so that a training that goes on after a crash is the same run there
            resume=None if mode == "offline" else "allow",
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
