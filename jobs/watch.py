"""Watch production: ``python jobs/watch.py LOGS``, once, or with ``--follow`` for as long as the logs grow.

LOGS are JSON lines of what production was asked and answered. Exit code 0 when it watched, whatever it found: alarms
are in the alerts, the metrics and on the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import run_job
from pipeline.watch.settings import Settings

DESCRIPTION = """Read production's logs, say of every output how far the version went from its reference, and raise an
alarm when outputs drift from what the version's first ones were."""


def main(settings: Settings) -> int:
    """Heavy imports come after the command line."""
    from pipeline.watch.job import watch

    return watch(settings)


if __name__ == "__main__":
    options = tyro.cli(Settings, prog="watch.py", description=DESCRIPTION, use_underscores=True)
    run_job(lambda: main(options))
