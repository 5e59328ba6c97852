from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.surroundings import default_storage


class TestDefaultStorage:
    def test_on_a_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
        assert default_storage() == "runs"

    def test_in_a_submitted_job(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_storage() == str(tmp_path / "ra-dpo-runs")
