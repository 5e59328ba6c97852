"""Measure the output head beside what it replaces: ``python jobs/benchmark.py``, here or inside ``ray job submit``.

Prints a table of ratios with their spread and writes all figures as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.bench.config import BenchmarkConfig
from pipeline.cli import run_job


def main(config: BenchmarkConfig) -> int:
    from pipeline.bench.job import benchmark  # heavy: --help must not wait for it

    return benchmark(config)


if __name__ == "__main__":
    description = "Time and peak memory of the output head beside a plain one and whole-tensor computations."
    config = tyro.cli(BenchmarkConfig, prog="benchmark.py", description=description, use_underscores=True)
    run_job(lambda: main(config))
