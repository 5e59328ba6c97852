"""What a schedule calls: look, and align again when the written policy asks for it: ``python jobs/realign.py``.

The first call makes the first alignment. A call that finds nothing to do takes seconds and starts no Ray; one that was
killed is gone on with by the same command; of two calls at the same time one does nothing. Every call leaves a record.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import Argument, parse_job, run_job
from pipeline.realign.job import realign

DESCRIPTION = """Look at production, its data and its alerts, and evaluate or align anew when the policy (realign.*)
asks for it. Meant for a schedule: exit code 0 unless something is wrong, whatever was decided. The first call makes
the first alignment."""
ARGUMENTS = (
    Argument("now", "TIME", "Act as if it were that time (ISO 8601, such as 2026-11-27T06:00): ages go by it."),
    Argument("accept", "DIGEST", "Take a batch that is held for good: its pairs count as any others from now on."),
    Argument("list", "", "Print what every call so far found, decided and did.", flag=True),
)

if __name__ == "__main__":
    request = parse_job("realign.py", DESCRIPTION, sections=("sweep", "realign"), own=ARGUMENTS)
    run_job(lambda: realign(request))
