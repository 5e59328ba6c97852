"""Compare two versions, models or files of outputs: ``python jobs/compare.py production candidate``.

Both answer the same prompts with the same seeds. What was sampled once is kept, so that the same again is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import Argument, parse_job, run_job
from pipeline.compare.job import compare

DESCRIPTION = """Compare B with A on the same prompts and seeds: scores and their tails, drift, and the worst
regressions. Each is a version of the registry (a number, or an alias such as production), a model directory, or a
JSONL file of any system's outputs: rows with "prompt", "output" and perhaps "seed"."""
WHAT = "Version, model directory, or file of outputs."
ARGUMENTS = (
    Argument("a", "A", f"{WHAT} What B is compared with.", positional=True),
    Argument("b", "B", WHAT, positional=True),
    Argument(
        "prompts",
        "FILE",
        'Prompts to compare on: JSONL rows with "prompt", or Parquet as in a version. Without it those of a file of '
        "outputs, or those that a version was judged by.",
    ),
    Argument("line", "LINE", "Which line of the registry, where there are several."),
)

if __name__ == "__main__":
    request = parse_job("compare.py", DESCRIPTION, own=ARGUMENTS)
    run_job(lambda: compare(request))
