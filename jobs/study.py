"""The evidence on what risk-awareness buys: ``python jobs/study.py`` runs the recipe study and writes its tables.

It is a sweep in which nothing is chosen, and whose runs are compared at equal drift and at equal mean. Running the same
command again goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import JobRequest, parse_job, run_job
from pipeline.sweep.job import run_sweep, sweep

RECIPE = "study"
TABLES = "study"
"""Directory of the tables, beside the sweep's report."""


def study(request: JobRequest) -> int:
    if request.dry_run:
        return sweep(request)
    from pipeline.errors import ConfigError, EvaluationError
    from pipeline.study.analyse import analyse
    from pipeline.study.runs import read_run
    from pipeline.study.write import write

    if "://" in (request.storage or ""):
        raise ConfigError(f"--storage: {request.storage} is a URL; a study reads its runs on a disk: give a directory")
    swept = run_sweep(request)
    missing = [one.trial.name for one in swept.ran if one.outcome.summary is None]
    if missing:
        raise EvaluationError(f"{len(missing)} run(s) did not finish, {missing[0]} among them: run the command again")
    directory = swept.folder.path / TABLES
    write(analyse([read_run(Path(str(one.outcome.summary))) for one in swept.ran]), directory)
    print(f"tables:  {directory}")
    return 0


if __name__ == "__main__":
    named = any(argument.partition("=")[0] == "--recipe" for argument in sys.argv[1:])
    arguments = sys.argv[1:] if named else ["--recipe", RECIPE, *sys.argv[1:]]
    run_job(lambda: study(parse_job("study.py", "Compare the methods of the recipe study.", arguments, sweep=True)))
