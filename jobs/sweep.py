"""Try many settings and choose one by what is tolerated: ``python jobs/sweep.py --recipe reviews``.

Running the same command again goes on where it was. Exit code 3 when no setting keeps every limit.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import parse_job, run_job
from pipeline.sweep.job import sweep

if __name__ == "__main__":
    request = parse_job("sweep.py", "Try many settings of the loss, and choose one by what is tolerated.", sweep=True)
    run_job(lambda: sweep(request))
