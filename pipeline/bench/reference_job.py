"""The benchmark of the reference pass as a Ray job: one measurement at a time, each in processes of its own.

::

    for each model:  model and pairs ─► passes by one and by several actors, in turn ─► prompts once or not
                     ─► a cache of every tier ─► training steps of all kinds, in turn
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole

from pipeline.bench.output import output_file, write_figures
from pipeline.bench.reference_config import TIERS, ReferenceBenchmark
from pipeline.cluster import connected, ray_errors
from pipeline.config import ClusterConfig
from pipeline.console import Console, quiet_libraries
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from pipeline.bench.material import Material


def reference_benchmark(config: ReferenceBenchmark) -> int:
    """Measure, print the tables and write the figures; returns the exit code."""
    output = output_file(config.output)
    quiet_libraries(output.with_suffix(".log"))
    cluster = ClusterConfig(
        address=config.address, num_workers=1, cpus_per_worker=config.threads, max_actors=config.actors
    )
    with (
        Console() as console,
        connected(cluster, open_storage(str(output.parent))) as where,
        tempfile.TemporaryDirectory(prefix=".benchmark-", dir=output.parent) as scratch,
    ):
        console.line(where)
        # Imported late: what follows needs torch, and the command line must answer at once.
        from pipeline.bench.config import BenchmarkConfig
        from pipeline.bench.measure import machine

        models = [
            _measure(config, name, Path(scratch) / str(number), console) for number, name in enumerate(config.models)
        ]
        on = _alone(config, machine, BenchmarkConfig(threads=config.threads))
    from pipeline.bench.reference_figures import tables

    for record in models:
        for table in tables(record):
            RichConsole(width=120).print(table)
    write_figures(output, {"machine": on, "config": config.model_dump(), "models": models})
    print(f"on {on['device']}, torch {on['torch']}; figures: {output}")
    return 0


def _measure(config: ReferenceBenchmark, name: str, scratch: Path, console: Console) -> dict[str, Any]:
    from pipeline.bench import material, pass_speed, reference_figures, step_speed

    def stage(what: str) -> str:
        console.line(f"{name}: {what}")
        return what

    stage("model and pairs")
    made: Material = _alone(config, material.make_material, config, name, scratch)
    stage("passes by one actor and by several")
    passes = _passes(config, made, scratch)
    stage("prompts once, or for every response")
    prompts = _alone(config, pass_speed.prompts_once, config, made)
    stage("a cache of every tier")
    manifests, caches = _caches(config, made, scratch / "references")
    stage("training steps")
    seconds = _alone(config, step_speed.time_steps, config, made, caches)
    return {
        "model": name,
        "weights": made.weights,
        "pairs": made.num_pairs,
        "tokens": made.tokens,
        "pass": passes,
        "prompts": reference_figures.prompt_figures(prompts["tokens"], prompts["seconds"]),
        "tiers": [reference_figures.tier_figures(tier, manifest) for tier, manifest in manifests.items()],
        "training": reference_figures.step_figures(seconds, step_speed.BASELINE, step_speed.LIVE)
        | {"seconds": seconds},
    }


def _alone(config: ReferenceBenchmark, function: Any, *arguments: Any) -> Any:
    """The function's value from a process that does nothing else and ends with it."""
    import ray

    remote = ray.remote(num_cpus=config.threads, max_calls=1, max_retries=0)(function)
    with ray_errors():
        return ray.get(remote.remote(*arguments))


def _passes(config: ReferenceBenchmark, made: Material, scratch: Path) -> dict[str, Any]:
    from pipeline.actors import Pool
    from pipeline.bench.pass_speed import timed_pass
    from pipeline.bench.reference_figures import pass_figures

    sizes = sorted({1, Pool(cpus=1, gpus=0, max_actors=config.actors).size()})
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    startups: dict[int, list[float]] = {size: [] for size in sizes}
    for round_ in range(config.rounds):
        for size in sizes if round_ % 2 == 0 else reversed(sizes):
            timed = timed_pass(config, made, size, scratch / f"pass-{round_}-{size}")
            rates[size].append(timed.tokens_per_s)
            startups[size].append(timed.startup_s)
    return pass_figures(rates, startups)


def _caches(config: ReferenceBenchmark, made: Material, root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Manifest and place of a cache of each tier, by the stage that users run."""
    from pipeline.bench.pass_speed import run_config
    from pipeline.places import Place
    from pipeline.reference.stage import run_reference

    manifests, places = {}, {}
    for tier, options in TIERS.items():
        run = run_config(config, made, config.actors, **options)
        names = {"model": made.name, "data": config.pairs or "packed reviews"}
        result = run_reference(
            run,
            str(made.model_dir),
            str(made.tokens_dir),
            Place(str(root)),
            names,
            lambda done, total, note: None,
            lambda text: None,
        )
        manifests[tier], places[tier] = result.manifest, result.place
    return manifests, places
