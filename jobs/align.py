"""Align a model: ``python jobs/align.py --recipe reviews``, on this machine or inside ``ray job submit``.

Running the same command again goes on from the last finished stage.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import parse_job, run_job
from pipeline.job import align

if __name__ == "__main__":
    request = parse_job("align.py", "Align a language model with a risk-aware preference loss.")
    run_job(lambda: align(request))
