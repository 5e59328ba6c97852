"""The benchmark as a Ray job: timings in one worker process, each memory figure in a process of its own."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole

from pipeline.bench.config import BenchmarkConfig
from pipeline.bench.output import output_file, write_figures
from pipeline.bench.report import figures, table
from pipeline.cluster import connected, ray_errors
from pipeline.config import ClusterConfig
from pipeline.console import Console, quiet_libraries
from pipeline.storage import open_storage


def benchmark(config: BenchmarkConfig) -> int:
    """Measure, print the table and write the figures; returns the exit code."""
    output = output_file(config.output)
    quiet_libraries(output.with_suffix(".log"))
    cluster = ClusterConfig(
        address=config.address,
        num_workers=1,
        cpus_per_worker=config.threads,
        gpus_per_worker=config.gpus,
        cpus_per_actor=config.threads,
        gpus_per_actor=config.gpus,
        max_actors=1,
    )
    with Console() as console, connected(cluster, open_storage(str(output.parent))) as where:
        console.line(where)
        records, on = _measure(config, console)
    title = f"Output head, forward and backward: {config.positions:,} positions, d {config.hidden}, {on['dtype']}"
    # Imported late: the subjects need torch, and the command line must answer at once.
    from pipeline.bench.subjects import TEXTS

    RichConsole(width=120).print(table(records, TEXTS, title))
    write_figures(output, {"machine": on, "config": config.model_dump(), "figures": records})
    print(f"on {on['device']}, torch {on['torch']}; figures: {output}")
    return 0


def _measure(config: BenchmarkConfig, console: Console) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import ray

    from pipeline.bench import measure
    from pipeline.bench.subjects import subjects

    # A process a call: what one measurement leaves in the allocator must not show in the next.
    fresh = ray.remote(num_cpus=config.threads, num_gpus=config.gpus, max_calls=1, max_retries=0)
    records: list[dict[str, Any]] = []
    with ray_errors():
        for vocab_size in config.vocabularies:
            name = f"vocabulary {vocab_size:,}"
            console.stage_started(name)
            seconds = ray.get(fresh(measure.time_subjects).remote(config, vocab_size))
            names = list(subjects(config))
            peaks = {}
            for done, subject in enumerate(names):
                console.stage_progress(name, done, len(names), "memory")
                peaks[subject] = ray.get(fresh(measure.peak_bytes).remote(config, vocab_size, subject))
            records += figures(config, vocab_size, seconds, peaks)
            console.stage_finished(name, sum(second or 0.0 for column in seconds.values() for second in column))
        return records, ray.get(fresh(measure.machine).remote(config))
