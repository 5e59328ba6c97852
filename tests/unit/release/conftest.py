from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.registry import OPTION
from tests.unit.release import lines


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Where the directories of the tiny models are made."""
    return tmp_path / "made"


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a registry that is not there yet."""
    if request.param == "local":
        yield str(tmp_path / "registry")
    else:
        yield f"memory://{tmp_path.name}/registry"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a registry with one line (`lines.begin_with_history`); copy it before you change anything."""
    made = tmp_path_factory.mktemp("history")
    lines.begin_with_history(str(made), tmp_path_factory.mktemp("models"))
    return made


@pytest.fixture
def local_line(history: Path, tmp_path: Path) -> Line:
    """A line with some history on a local disk."""
    lines.copy_of(history, tmp_path)
    return Line(Place(str(tmp_path / "registry"), OPTION), lines.NAME)


@pytest.fixture
def line(root: str, request: pytest.FixtureRequest) -> Line:
    """The same on a local disk, and on an object store."""
    if "://" not in root:
        made: Line = request.getfixturevalue("local_line")
        return made
    return lines.begin_with_history(root, request.getfixturevalue("models"))
