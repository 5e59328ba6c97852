"""When a training waits, shrinks, is tried again and gives up: with a clock and a cluster of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import ClusterError
from pipeline.training import stage
from pipeline.training.spec import TrainSpec

NEVER = ControllerError(WorkerGroupStartupTimeoutError(2))
DIED = WorkerGroupError("", {0: ray.exceptions.ActorDiedError()})
DONE = {"seconds_per_step": 1.0, "checkpoints": 1.0, "checkpoint_seconds": 0.1}
START_S = 60.0


class World:
    """Attempts end as ``ends`` says, each after so many seconds; ``room`` says how many workers fit at a time."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **cluster: Any) -> None:
        self.now, self.said, self.workers = 0.0, [], []
        self.room: Callable[[float], int] = lambda now: 2
        self.ends: Iterator[tuple[float, Any]] = iter(())
        self.spec = TrainSpec(
            kind="align",
            run={
                "data": {"path": "d"},
                "model": {"path": "m"},
                "cluster": {"num_workers": 2, "min_workers": 1, "resource_wait_s": 1800, "node_wait_s": 60} | cluster,
            },
            model_dir="m",
            tokens_dir="t",
            reference="r",
            out_dir="o",
            run_dir=str(tmp_path / "run"),
            identity={},
            wandb_dir="w",
            name="n",
        )
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        for name, value in {
            "time": clock,
            "node_resources": lambda: [{"CPU": float(self.room(self.now))}],
            "stored_size": lambda path: SimpleNamespace(parameters=1),
            "require_nodes": lambda *arguments, **options: None,
            "remove_placement_groups": lambda: None,
            "_attempt": self.attempt,
        }.items():
            monkeypatch.setattr(stage, name, value)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def attempt(self, spec: Any, cluster: Any, step: Any, workers: int, *rest: Any) -> dict[str, float]:
        self.workers.append(workers)
        seconds, end = next(self.ends)
        self.now += seconds
        if isinstance(end, Exception):
            raise end
        return end

    def run(self, *ends: tuple[float, Any]) -> stage.TrainingResult:
        self.ends = iter(ends)
        return stage.run_training(self.spec, Path("scratch"), lambda *progress: None, self.said.append)


def test_a_lost_node_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back after 30 of 60 seconds: training goes on with all workers."""
    world = World(tmp_path, monkeypatch)
    world.room = lambda now: 1 if 100 < now < 130 else 2
    result = world.run((101, DIED), (10, DONE))
    assert world.workers == [2, 2]
    assert result.attempts == 2
    assert any("room for 1 of 2 workers" in line for line in world.said)


def test_then_training_goes_on_with_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.room = lambda now: 1 if now > 100 else 2
    world.run((101, DIED), (10, DONE))
    assert world.workers == [2, 1]
    assert 101 + 60 <= world.now < 101 + 60 + 20


def test_but_not_with_fewer_than_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, min_workers=2)
    world.room = lambda now: 1 if now > 100 else 2
    with pytest.raises(ClusterError, match=r"room for 1 worker.*min_workers is 2: add a node"):
        world.run((101, DIED))
    assert 101 + 1800 <= world.now < 101 + 1800 + 20


def test_a_node_that_comes_while_memory_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.room = lambda now: 1 if now < 200 else 2
    monkeypatch.setattr(
        stage, "require_nodes", lambda *arguments, **options: world.sleep(300 if world.now < 200 else 0)
    )
    world.run((10, DONE))
    assert world.workers == [2]


def test_workers_that_never_start_end_the_job_after_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up every minute; the user's limit is half an hour, once. No start counts as an attempt of its own."""
    world = World(tmp_path, monkeypatch)
    with pytest.raises(ClusterError, match=r"2 train worker.* did not start within cluster.resource_wait_s = 1800 s"):
        world.run(*[(START_S, NEVER)] * 100)
    assert 1800 < world.now <= 1800 + 2 * START_S
    assert not any("goes on" in line for line in world.said)


def test_time_spent_otherwise_is_no_time_spent_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of training and a roll-back, or half an hour's wait for a node, before a start that takes two tries."""
    world = World(tmp_path, monkeypatch, min_workers=2)
    world.room = lambda now: 2 if now < 3600 or now > 5300 else 1
    ends = [(3600, {"rolled_back": 1.0}), (START_S, NEVER), (10, DIED), (START_S, NEVER), (10, DONE)]
    assert world.run(*ends).attempts == 3
    assert world.now > 5300


def test_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, max_failures=2)
    with pytest.raises(ClusterError, match=r"lost more than 2 time.* without a new checkpoint"):
        world.run(*[(10, DIED)] * 10)
    assert len(world.workers) == 3
