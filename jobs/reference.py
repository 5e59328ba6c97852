"""The reference cache by itself: compute one ahead of alignments, or look at one.

``python jobs/reference.py compute --recipe reviews`` runs an alignment's stages up to its reference cache, with the
options of jobs/align.py; ``python jobs/reference.py inspect DIR`` says what a cache is and verifies every byte.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import EXIT_FAILED, EXIT_USAGE, parse_job, run_job
from pipeline.job import reference

USAGE = """usage: reference.py compute [OPTIONS of jobs/align.py]   compute a cache, or go on with it
       reference.py inspect DIR                        what a cache is: model, data, sizes, statistics, damage"""


@dataclass(frozen=True)
class Inspect:
    place: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory or URL of a cache, as the job printed it."""


def inspect(options: Inspect) -> int:
    """Exit code 0 for a finished cache without damage."""
    from rich.console import Console

    from pipeline.places import Place
    from pipeline.reference.inspect import inspect, show

    found = inspect(Place(options.place))
    show(found, Console(highlight=False, markup=False, emoji=False))
    return 0 if found.sound else EXIT_FAILED


def main(arguments: list[str]) -> None:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "compute":
        request = parse_job("reference.py compute", "Compute the reference cache of an alignment.", rest)
        run_job(lambda: reference(request))
    if command == "inspect":
        options = tyro.cli(Inspect, prog="reference.py inspect", description="Look at a reference cache.", args=rest)
        run_job(lambda: inspect(options))
    asked = command in ("-h", "--help")
    print(USAGE, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else EXIT_USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
