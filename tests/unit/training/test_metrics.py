from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.config import WandbConfig
from pipeline.tracking import wandb_mode
from pipeline.training.metrics import Tracker

ROWS = [{"step": 1, "split": "train", "loss": 0.7, "rows": "0a1b"}, {"step": 1, "split": "validation", "loss": 0.6}]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


class TestMode:
    def test_offline_without_a_key(self) -> None:
        assert wandb_mode(WandbConfig()) == "offline"

    def test_online_with_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        assert wandb_mode(WandbConfig()) == "online"

    def test_online_after_a_login(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password k\n")
        assert wandb_mode(WandbConfig()) == "online"

    def test_another_machines_login_does_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text("machine example.com login user password k")
        assert wandb_mode(WandbConfig()) == "offline"

    def test_what_is_asked_for_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert wandb_mode(WandbConfig()) == "disabled"
        assert wandb_mode(WandbConfig(mode="offline")) == "offline"


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    with Tracker(WandbConfig(mode="disabled"), tmp_path / "wandb", "run", {}) as track:
        for row in ROWS:
            track(row)
    assert not (tmp_path / "wandb").exists()


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    directory = tmp_path / "wandb-files"
    with Tracker(WandbConfig(mode="offline"), directory, "run", {"lr": 1.0}) as track:
        for row in ROWS:
            track(row)
    [record] = directory.glob("wandb/offline-run-*/run-*.wandb")
    # W&B's service writes on after the run has ended here.
    deadline = time.monotonic() + 10
    while b"validation/loss" not in record.read_bytes():
        assert time.monotonic() < deadline, "the validation row is missing"
        time.sleep(0.05)
    assert b"train/loss" in record.read_bytes()
