"""The registry by hand: ``python jobs/registry.py list``, ``path production``, ``promote 3``, ``verify`` ...

It needs no Ray. Exit code not zero when something was refused, or when ``verify`` found a change.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

# The repository (or its unpacked copy on a cluster) comes before any installed version of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from pipeline.cli import run_job
from pipeline.release import commands as of

DESCRIPTION = "Versions of the policy, where the aliases point, and the audit trail."

Commands = (
    Annotated[of.List, tyro.conf.subcommand("list")]
    | Annotated[of.PathOf, tyro.conf.subcommand("path")]
    | Annotated[of.Promote, tyro.conf.subcommand("promote")]
    | Annotated[of.Verify, tyro.conf.subcommand("verify")]
    | Annotated[of.Export, tyro.conf.subcommand("export")]
    | Annotated[of.Explain, tyro.conf.subcommand("explain")]
    | Annotated[of.Remove, tyro.conf.subcommand("remove")]
)

if __name__ == "__main__":
    command = tyro.cli(Commands, prog="registry.py", description=DESCRIPTION, use_underscores=True)
    run_job(lambda: of.run(command))
