"""The same alignment with several numbers of workers: how far do the curves lie apart?"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.bench.config import BenchmarkConfig
from pipeline.bench.output import output_file, write_figures
from pipeline.bench.stability_config import StabilityBenchmark
from pipeline.config import RunConfig
from pipeline.console import Console, quiet_libraries
from pipeline.errors import ArtifactError, ConfigError
from pipeline.recipes import load_recipe, resolve
from pipeline.storage import open_storage

PANELS = {
    "loss": "loss",
    "grad_norm": "gradient norm, before clipping",
    "rejected_risk": "risk of the rejected response, nats",
    "skipped": "steps left out",
}
_COLOURS = ("#1f5fa8", "#c2571a", "#7d1d1d", "#3f7d3f")
_DASHES = ("-", "--", ":", "-.")


def stability_benchmark(config: StabilityBenchmark) -> int:
    """Train, draw, write the figures and say how far the curves lie apart; returns the exit code."""
    output = output_file(config.output)
    quiet_libraries(output.with_suffix(".log"))
    run = resolve(load_recipe(config.recipe), {})
    with Console() as console:
        metrics = _train(config, run, console)
        curves = {workers: curves_of(rows) for workers, rows in metrics.items()}
        draw(curves, Path(config.figure))
        apart = largest_differences(curves)
        for name, value in apart.items():
            console.line(f"{PANELS[name]}: at most {value:.2g} apart")
        from pipeline.bench.measure import machine

        on = machine(BenchmarkConfig())
        write_figures(output, {"machine": on, "config": config.model_dump(), "apart": apart, "curves": curves})
        console.line(f"figure: {config.figure}; numbers: {output}; on {on['device']}")
    return 0


def _train(config: StabilityBenchmark, run: RunConfig, console: Console) -> dict[int, list[dict[str, Any]]]:
    from pipeline.align import AlignmentRun
    from pipeline.data.tables import read_jsonl
    from pipeline.training.stage import run_training

    storage = open_storage(config.storage)
    if not storage.is_local:
        raise ConfigError(f"--storage: {storage.root} is a URL; a benchmark measures a directory: give one")
    store = storage.store(create=False)
    alignment = AlignmentRun(Path(config.recipe).stem, run, storage, until=("align",))
    have: dict[str, Artifact] = {}
    for name in alignment.planned["align"].stage.inputs:
        try:
            have[name] = store.open(name, alignment.planned[name].key)
        except KeyError:
            raise ArtifactError(
                f"{storage.root} holds no {name} of recipe {config.recipe}: run jobs/align.py with both of them first"
            ) from None
    metrics = {}
    with _ray(max(config.workers)), tempfile.TemporaryDirectory(prefix=".benchmark-", dir=storage.here) as scratch:
        for workers in config.workers:
            console.line(f"with {workers} worker(s)")
            folder = Path(scratch) / str(workers)
            (folder / "out").mkdir(parents=True)
            spec = alignment.training("align", have, str(folder / "out"), str(folder / "run"), num_workers=workers)
            run_training(spec, folder / "ray", lambda done, total, note: None, console.line)
            metrics[workers] = read_jsonl(folder / "out" / "metrics.jsonl")
    return metrics


def _ray(cpus: int) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    # As many CPUs as workers, so that all of them find a place on a small machine: time is not what is measured.
    return ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """A training's rows of metrics as one value for each step; a step left out repeats the value before it."""
    curves: dict[str, list[float]] = {name: [] for name in PANELS}
    skipped = 0
    for row in rows:
        if row["split"] not in ("train", "skipped"):
            continue
        skipped += row["split"] == "skipped"
        for name, values in curves.items():
            before = values[-1] if values else 0.0
            values.append(float(skipped) if name == "skipped" else float(row.get(name, before)))
    return curves


def largest_differences(curves: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Of any two trainings at any step."""
    return {
        name: max(max(values) - min(values) for values in zip(*(one[name] for one in curves.values()), strict=True))
        for name in PANELS
    }


def draw(curves: Mapping[int, Mapping[str, Sequence[float]]], path: Path) -> None:
    """One panel for each quantity, one line for each number of workers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}):
        figure = Figure(figsize=(9.2, 5.6), layout="constrained")
        for axes, (name, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for number, (workers, values) in enumerate(curves.items()):
                steps = range(1, len(values[name]) + 1)
                axes.plot(
                    steps,
                    values[name],
                    color=_COLOURS[number % 4],
                    linestyle=_DASHES[number % 4],
                    linewidth=max(1.0, 2.6 - 0.7 * number),
                    label=f"{workers} worker{'s' * (workers > 1)}",
                )
            axes.set_title(label, loc="left")
            axes.set_xlabel("optimiser step")
            axes.grid(color="#e4e8ee")
            if name == "skipped":
                axes.set_ylim(-0.05, max(1.0, *(max(one[name]) for one in curves.values())) * 1.1)
        figure.axes[0].legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
