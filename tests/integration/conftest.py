"""One uninterrupted run of the tiny recipe, shared by the tests that need its result."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job


@dataclass(frozen=True)
class FinishedRun:
    recipe: Path
    storage: Path
    output: str


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("finished")
    recipe = job.write_recipe(folder)
    arguments = ["--recipe", str(recipe), "--storage", str(folder / "runs")]
    code, output = job.run(arguments, variables=job.SECRETS)
    assert code == 0, output
    return FinishedRun(recipe, folder / "runs", output)
