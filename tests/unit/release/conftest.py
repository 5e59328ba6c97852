from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.release.registry import Line
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


@pytest.fixture
def line(root: str, models: Path) -> Line:
    """See `lines.begin_with_history`."""
    return lines.begin_with_history(root, models)


@pytest.fixture
def local_line(tmp_path: Path, models: Path) -> Line:
    """The same on a local disk, whose files a test can change."""
    return lines.begin_with_history(str(tmp_path / "registry"), models)
