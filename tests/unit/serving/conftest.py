"""A line of small versions, and guards in this process: without Ray Serve, over the same HTTP application."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from tests.served import OpenGuard, begin_line, write_versions


@pytest.fixture(scope="session")
def version_models(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories of three models of one shape."""
    return write_versions(built_model, tmp_path_factory.mktemp("versions"), 3)


@pytest.fixture(scope="session")
def served(version_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage whose registry has versions 0 to 2, production at 2 and 1 before it; copy it before you change it."""
    storage = tmp_path_factory.mktemp("served")
    begin_line(str(storage / "registry"), version_models)
    return storage


@pytest.fixture
def storage(served: Path, tmp_path: Path) -> Path:
    """A copy of `served` for one test."""
    return shutil.copytree(served, tmp_path / "runs")


@pytest.fixture
def line(storage: Path) -> Line:
    """The line in `storage`."""
    return open_registry(str(storage / "registry")).line()


@pytest.fixture
def open_guard(storage: Path) -> OpenGuard:
    """Opens a guard with these options on `storage`, and gives a client of it."""
    from pipeline.serving.guard import Guard
    from pipeline.serving.options import GuardOptions

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
        guard = await Guard.open(GuardOptions(storage=str(storage), **options))
        try:
            transport = httpx.ASGITransport(guard.app(), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://guard") as client:
                yield client
        finally:
            await guard.close()

    return opened
