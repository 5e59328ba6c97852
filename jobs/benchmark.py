"""Measure on this machine: ``python jobs/benchmark.py head``, ``reference``, ``checkpoint`` or ``stability``.

``head``: the output head beside what it replaces. ``reference``: the reference pass, the size of its cache, and a
training step with each tier beside one with a live reference. ``checkpoint``: what a checkpoint costs a training.
``stability``: an alignment with several numbers of workers, and their curves in one figure. All say what they found and
write their figures as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.bench.checkpoint_config import CheckpointBenchmark
from pipeline.bench.config import BenchmarkConfig
from pipeline.bench.reference_config import ReferenceBenchmark
from pipeline.bench.stability_config import StabilityBenchmark
from pipeline.cli import run_job

Benchmark = (
    Annotated[BenchmarkConfig, tyro.conf.subcommand("head", prefix_name=False)]
    | Annotated[ReferenceBenchmark, tyro.conf.subcommand("reference", prefix_name=False)]
    | Annotated[CheckpointBenchmark, tyro.conf.subcommand("checkpoint", prefix_name=False)]
    | Annotated[StabilityBenchmark, tyro.conf.subcommand("stability", prefix_name=False)]
)


def main(config: BenchmarkConfig | ReferenceBenchmark | CheckpointBenchmark | StabilityBenchmark) -> int:
    # All are heavy: --help must not wait for them.
    if isinstance(config, ReferenceBenchmark):
        from pipeline.bench.reference_job import reference_benchmark

        return reference_benchmark(config)
    if isinstance(config, CheckpointBenchmark):
        from pipeline.bench.checkpoint_cost import checkpoint_benchmark

        return checkpoint_benchmark(config)
    if isinstance(config, StabilityBenchmark):
        from pipeline.bench.stability import stability_benchmark

        return stability_benchmark(config)
    from pipeline.bench.job import benchmark

    return benchmark(config)


if __name__ == "__main__":
    description = "Time and memory of the output head, of the reference pass or of a checkpoint; curves of training."
    config: BenchmarkConfig | ReferenceBenchmark | CheckpointBenchmark | StabilityBenchmark = tyro.cli(
        Benchmark,
        prog="benchmark.py",
        description=description,
        use_underscores=True,
    )
    run_job(lambda: main(config))
