"""Go back at once: ``python jobs/rollback.py``, to the version before, or ``--to reference``.

It needs no Ray, no GPU and no network but the registry's own; it may be repeated, and it wins against a promotion at
the same moment. Exit code not zero when nothing could be moved.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import run_job
from pipeline.release.undo import RollBack, roll_back

DESCRIPTION = "Move production back to the version before it, or to any other one, now."

if __name__ == "__main__":
    options = tyro.cli(RollBack, prog="rollback.py", description=DESCRIPTION, use_underscores=True)
    run_job(lambda: roll_back(options))
