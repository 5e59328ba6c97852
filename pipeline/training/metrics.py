"""Training metrics in Weights & Biases, beside the JSON lines of the run directory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.config import WandbConfig
from pipeline.tracking import start_run, wandb_mode


class Tracker:
    """Sends rows of metrics to W&B. Use as a context manager."""

    def __init__(self, config: WandbConfig, directory: Path, name: str, run_config: dict[str, Any]) -> None:
        self._run: Any = None
        mode = wandb_mode(config)
        if mode != "disabled":
            self._run = start_run(config, mode, directory, name, run_config)

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
