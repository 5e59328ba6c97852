"""The experiment as a job: train, compare, print, draw, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.bench.config import BenchmarkConfig
from pipeline.bench.measure import machine
from pipeline.bench.output import output_file, write_figures
from pipeline.errors import ConfigError
from pipeline.world.config import WorldExperiment
from pipeline.world.draw import draw_world
from pipeline.world.evidence import drawn_pairs, every_pair
from pipeline.world.experiment import BETAS, Row, rows_of
from pipeline.world.figure import PLACE, draw
from pipeline.world.grammar import World
from pipeline.world.learning import Schedule
from pipeline.world.truth import Truth, truth_of

COLUMNS = {
    "mean": ("mean reward", 1.0, 3),
    "cvar_10": ("worst 10%", 1.0, 3),
    "cvar_1": ("worst 1%", 1.0, 2),
    "catastrophe": ("catastrophes in 1,000", 1000.0, 2),
}
"""Heading, unit and digits of a figure of `Truth` in the table."""


def world_experiment(config: WorldExperiment) -> int:
    """Run it; returns the exit code.

    Raises:
        ConfigError: when the figure or the numbers cannot be written where they should be.
    """
    output = output_file(config.output)
    figure = _figure_file(config.figure)
    torch.set_num_threads(1)  # the tensors are small, and one thread sums in one order
    console, began = Console(), time.monotonic()
    seeds = range(config.seed, config.seed + config.worlds)
    worlds = [draw_world(seed) for seed in seeds]
    reference = _averages(worlds)
    kinds = {
        "every pair known": [every_pair(world) for world in worlds],
        f"{config.pairs} pairs drawn": [
            drawn_pairs(world, config.pairs, seed) for world, seed in zip(worlds, seeds, strict=True)
        ],
    }
    rows: dict[str, list[Row]] = {}
    with console.status("") as status:
        for kind, evidence in kinds.items():
            rows[kind] = []
            for row in rows_of(worlds, evidence, Schedule(config.steps)):
                rows[kind].append(row)
                status.update(f"{kind}: {row.label} is done")
    for name, its_rows in rows.items():
        console.print(_table(f"{name}, {PLACE} nats: differences from dpo, ± standard errors", its_rows))
    console.print(f"the reference: {', '.join(f'{key} {value:.3g}' for key, value in reference.items())}")
    draw(rows, figure)
    on = machine(BenchmarkConfig(threads=1))
    write_figures(
        output,
        {"machine": on, "config": config.model_dump(), "betas": BETAS, "reference": reference}
        | {"rows": {name: [_record(row) for row in its_rows] for name, its_rows in rows.items()}},
    )
    console.print(f"{time.monotonic() - began:.0f} s; figure: {figure}; numbers: {output}")
    return 0


def _figure_file(path: str) -> Path:
    """The file of ``--figure``, in a directory that is there."""
    figure = Path(path).expanduser().resolve()
    if figure.is_dir() or figure.suffix != ".png":
        raise ConfigError(f"--figure: {figure} is not a file that ends in .png")
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figure: cannot write to {figure.parent}: {error.strerror}") from error
    return figure


def _averages(worlds: Sequence[World]) -> dict[str, float]:
    """The truth about the reference, averaged over worlds."""
    truths = [truth_of(world, world.log_ref) for world in worlds]
    return {name: float(np.mean([getattr(truth, name).item() for truth in truths])) for name in Truth._fields}


def _table(title: str, rows: Sequence[Row]) -> Table:
    """dpo's figures, and how far the others lie from them."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.caption = "-: not reached in every world"
    table.add_column("method", no_wrap=True)
    for heading in ("alpha", "level", *(heading for heading, _, _ in COLUMNS.values())):
        table.add_column(heading, justify="right")
    last = None
    for row in rows:
        if row.family != last:
            table.add_section()
        last = row.family
        table.add_row(*_names(row), *_cells(row))
    return table


def _names(row: Row) -> tuple[str, str, str]:
    """Method, alpha and level as the table shows them."""
    if row.family is None:
        return "dpo", "", ""
    return row.family.method, "" if row.family.alpha is None else f"{row.family.alpha:g}", f"{row.level:g}"


def _cells(row: Row) -> list[str]:
    here = row.at[PLACE]
    if here is None:
        return ["-"] * len(COLUMNS)
    cells = []
    for name, (_, unit, digits) in COLUMNS.items():
        value, difference, error = (unit * number for number in here[name])
        is_dpo = row.family is None
        cells.append(f"{value:.{digits}f}" if is_dpo else f"{difference:+.{digits}f}±{error:.{digits}f}")
    return cells


def _record(row: Row) -> dict[str, Any]:
    at: dict[str, Any] = {
        place: None if here is None else {name: figure._asdict() for name, figure in here.items()}
        for place, here in row.at.items()
    }
    return {"method": row.label, "alpha": row.family and row.family.alpha, "level": row.level, "at": at}
