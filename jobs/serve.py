"""Serve what is in production: ``python jobs/serve.py --storage runs``, an OpenAI-compatible endpoint.

It asks the registry with every request which version that is, so that a roll-back holds from the next request on. It
serves until SIGTERM or SIGINT, and then answers what is under way.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import run_job
from pipeline.serving.job import ServeOptions, serve_until_stopped

DESCRIPTION = "An OpenAI-compatible service that answers with the version in production."

if __name__ == "__main__":
    options = tyro.cli(ServeOptions, prog="serve.py", description=DESCRIPTION, use_underscores=True)
    run_job(lambda: serve_until_stopped(options))
