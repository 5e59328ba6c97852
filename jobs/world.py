"""What a risk level buys, in worlds whose truth is known: ``python jobs/world.py``.

Small token trees with rare catastrophes and an exact reward: every method is trained at every level, and the mean, the
tail and the catastrophes of its policies are enumerated, not sampled. Prints a table, draws a figure and writes JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import run_job
from pipeline.world.config import WorldExperiment


def main(config: WorldExperiment) -> int:
    # Heavy: --help must not wait for it.
    from pipeline.world.job import world_experiment

    return world_experiment(config)


if __name__ == "__main__":
    config = tyro.cli(
        WorldExperiment,
        prog="world.py",
        description="Mean, tail and catastrophes of trained policies, by enumeration, at every risk level.",
        use_underscores=True,
    )
    run_job(lambda: main(config))
