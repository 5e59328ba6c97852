"""What is tried again and what is not, with the exceptions that Ray and torch really raise."""

from __future__ import annotations

import pytest
import ray.exceptions
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import ArtifactError, ClusterError, TrainingError
from pipeline.training.failures import Patience, is_lost, is_waiting

DIED = ray.exceptions.ActorDiedError()
GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41")

CONNECTING = RuntimeError(
    "Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:152] timed out connecting: "
    "SO_ERROR: Connection refused"
)
MISUSE = RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4")


def in_worker(error: BaseException) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(error, "traceback")


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("", {0: DIED}),
        WorkerGroupError("", {0: DIED, 1: in_worker(GLOO)}),
        WorkerGroupError("", {1: in_worker(GLOO)}),
        WorkerGroupError("", {0: in_worker(CONNECTING), 1: DIED}),
        WorkerGroupError("", {0: in_worker(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out"))}),
        WorkerGroupError("", {1: in_worker(torch.distributed.DistNetworkError("reset"))}),
        WorkerGroupError("", {0: ray.exceptions.NodeDiedError("gone")}),
        ControllerError(WorkerGroupStartupTimeoutError(2)),
        ray.exceptions.ActorDiedError(),
        ClusterError("a worker process died"),
    ],
    ids=repr,
)
def test_losses_are_tried_again(error: BaseException) -> None:
    assert is_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("", {0: in_worker(TrainingError("the loss is not finite"))}),
        WorkerGroupError("", {0: in_worker(GLOO), 1: in_worker(TypeError("a fault of the program"))}),
        WorkerGroupError("", {0: DIED, 1: in_worker(ArtifactError("the disk is full"))}),
        WorkerGroupError("", {0: in_worker(RuntimeError("shapes cannot be multiplied"))}),
        WorkerGroupError("", {0: in_worker(MemoryError())}),
        WorkerGroupError("", {0: in_worker(MISUSE)}),
        ValueError("wrong"),
    ],
    ids=repr,
)
def test_faults_are_not(error: BaseException) -> None:
    assert not is_lost(error)


def test_waiting_for_resources_is_told_apart() -> None:
    assert is_waiting(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert not is_waiting(WorkerGroupError("", {0: DIED}))


def test_patience_lasts_as_long_as_there_is_progress() -> None:
    patience = Patience(2)
    for step in (0, 5, 10, 15, 20):
        patience = patience.after(step)
        assert not patience.exhausted
    patience = patience.after(20)
    assert not patience.exhausted
    assert patience.after(20).exhausted
    assert not patience.after(21).exhausted


def test_checkpoints_before_a_damaged_one_are_progress_too() -> None:
    patience = Patience(1).after(80)
    for step in (4, 8, 12):
        patience = patience.after(step)
        assert not patience.exhausted
    assert patience.after(12).exhausted


def test_no_patience_at_all() -> None:
    assert Patience(0).after(5).exhausted
