"""Options of the benchmark of stability (nothing heavy is imported here)."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from pipeline.section import Section


class StabilityBenchmark(Section):
    """The alignment of a finished run again with several numbers of workers, and their curves in one figure."""

    recipe: str = "reviews"
    """Recipe of the finished run, by name or path, as it was run: without other options."""
    storage: str = "runs"
    """Where it was run."""
    workers: tuple[PositiveInt, ...] = Field((1, 2, 3), min_length=2)
    """Numbers of workers; each takes one CPU as Ray counts them, whatever the machine has."""
    figure: str = "docs/stability.png"
    """File for the figure."""
    output: str = "runs/benchmark-stability.json"
    """File for the figures in numbers."""
