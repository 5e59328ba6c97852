"""The file of figures that a benchmark leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError


def output_file(path: str) -> Path:
    """The file of ``--output``, in a directory that is there.

    Raises:
        ConfigError: when it cannot be written to.
    """
    output = Path(path).expanduser().resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: cannot write to {output.parent}: {error.strerror}") from error
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a directory; give a file")
    return output


def write_figures(output: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures and today's date, whole or not at all."""
    unfinished = output.with_name(output.name + ".part")
    unfinished.write_text(json.dumps({"date": date.today().isoformat(), **figures}, indent=1) + "\n")
    unfinished.replace(output)
