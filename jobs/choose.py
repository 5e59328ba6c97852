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

from pipeline.cli import run_job
from pipeline.records import HeldOut
from pipeline.selection.tolerance import Tolerance

EXIT_NONE = 3
DESCRIPTION = """Choose between finished runs by what you tolerate.

Run each of them with --evaluation.split validation, and give the summary.json of all (runs/reports/*/summary.json).
What is chosen is then reported from the test split, by the command that is printed."""


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    summaries: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SUMMARY [SUMMARY ...]")]
    """summary.json of every run to choose from; seeds of one setting are taken together."""
    split: HeldOut = "validation"
    """Look at the runs that were judged by this split, and leave out the others."""
    tail_drop: float | None = None
    """By how much the mean score of the policy's worst outputs may lie below that of the reference's."""
    max_drift: float | None = None
    """Most drift from the reference: sequential KL on held-out chosen responses, nats a response."""
    max_incidents: float | None = None
    """Largest share of outputs whose score is below evaluation.incident_below, 0 to 1."""
    cost_per_incident: float | None = None
    """With a cost, the run with the least expected cost is best; without one, that with the best average score."""
    whole_interval: bool = False
    """Hold the worse end of every interval against the limits, and not the figure itself."""
    allow_decayed: bool = False
    """Also take a run whose text shows signs of decay (repetition, collapsed length, harder held-out text)."""
    output: Path | None = None
    """Also write the figures and the choice to this file, as JSON."""


def choose(request: Request) -> int:
    from rich.console import Console

    from pipeline.bench.output import output_file, write_figures
    from pipeline.errors import EvaluationError
    from pipeline.selection import choose as selection
    from pipeline.selection import show
    from pipeline.selection.judged import read_run, settings_of

    tolerance = Tolerance(
        request.tail_drop,
        request.max_drift,
        request.max_incidents,
        request.cost_per_incident,
        request.whole_interval,
        request.allow_decayed,
    )
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
    choice = selection.choose(settings, tolerance)
    show.show(settings, choice, tolerance, console)
    if output is not None:
        write_figures(output, show.as_json(settings, choice, tolerance))
        console.print(f"figures: {output}", soft_wrap=True)
    return EXIT_NONE if choice.best is None else 0


if __name__ == "__main__":
    run_job(lambda: choose(tyro.cli(Request, prog="choose.py", description=DESCRIPTION, use_underscores=True)))
