"""Choose between finished runs: ``python jobs/choose.py runs/reports/*/summary.json --tail_drop 0.02 --max_drift 5``.

It reads their summaries and needs no Ray. Exit code 3 when no run keeps every limit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro
from pydantic import ValidationError

from pipeline.cli import run_job
from pipeline.errors import ConfigError
from pipeline.recipes import described
from pipeline.records import HeldOut
from pipeline.sweep_config import Tolerance

EXIT_NONE = 3
DESCRIPTION = """Choose between finished runs by what you tolerate.

Run each of them with --evaluation.split validation, and give the summary.json of all (runs/reports/*/summary.json).
What is chosen is then reported from the test split, by the command that is printed."""


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    summaries: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SUMMARY [SUMMARY ...]")]
    """summary.json of every run to choose from; seeds of one setting are taken together."""
    tolerance: Annotated[Tolerance, tyro.conf.arg(name="")]
    split: HeldOut = "validation"
    """Look at the runs that were judged by this split, and leave out the others."""
    output: Path | None = None
    """Also write the figures and the choice to this file, as JSON."""


def choose(request: Request) -> int:
    from rich.console import Console

    from pipeline.bench.output import output_file, write_figures
    from pipeline.errors import EvaluationError
    from pipeline.selection import choose as selection
    from pipeline.selection import show
    from pipeline.selection.judged import read_run, settings_of

    output = None if request.output is None else output_file(str(request.output))
    runs = [read_run(path) for path in request.summaries]
    judged = [run for run in runs if run.split == request.split]
    if not judged:
        raise EvaluationError(
            f"none of the {len(runs)} run(s) was judged by the {request.split} split: run them with --evaluation.split "
            f"{request.split}, and give the summary.json of each (runs/reports/*/summary.json)"
        )
    console = Console(highlight=False, markup=False, emoji=False)
    if left := len(runs) - len(judged):
        console.print(f"{left} run(s) judged by another split than {request.split} are left out")
    settings = settings_of(judged)
    choice = selection.choose(settings, request.tolerance)
    show.show(settings, choice, request.tolerance, console)
    if output is not None:
        write_figures(output, show.as_json(settings, choice, request.tolerance))
        console.print(f"figures: {output}", soft_wrap=True)
    return EXIT_NONE if choice.best is None else 0


def main() -> int:
    try:
        request = tyro.cli(Request, prog="choose.py", description=DESCRIPTION, use_underscores=True)
    except ValidationError as error:  # of the tolerance
        raise ConfigError("\n".join(f"--{described(problem)}" for problem in error.errors())) from error
    return choose(request)


if __name__ == "__main__":
    run_job(main)
