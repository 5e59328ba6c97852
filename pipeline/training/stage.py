"""Running a training stage to its end, whatever dies on the way.

A training is a row of attempts. Each is a Ray Train worker group of its own that goes on from the newest checkpoint
that verifies, with as many workers as the cluster has room for. Ray Train's own retries are off: they would start the
same group again whatever went wrong, read back a snapshot that a crash can leave torn, and wait for ever for a node
that is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoints.directory import RunDirectory
from pipeline.checkpoints.remote import open_run
from pipeline.cluster import amounts, node_resources, places, ray_errors, remove_placement_groups
from pipeline.config import ClusterConfig, RunConfig
from pipeline.errors import ClusterError, PipelineError
from pipeline.models.size import stored_size
from pipeline.nodes import require_nodes
from pipeline.progress import Report, relayed
from pipeline.storage import local_copy
from pipeline.training.failures import Patience, is_lost, is_waiting
from pipeline.training.spec import TrainSpec
from pipeline.training.worker import work

_START_S = 60.0
"""For one try to start a worker group; a new one looks again at how many workers fit."""
_POLL_S = 1.0


@dataclass(frozen=True)
class TrainingResult:
    """What the console and the artefact's notes say; nothing of it changes what was learnt."""

    seconds_per_step: float
    attempts: int
    checkpoints: int
    """Taken in the last attempt."""
    checkpoint_seconds: float
    """The training's own time that these took."""
    sent: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Files of the result that rank 0 has put to a URL (`pipeline.artifacts.Staging`)."""


def run_training(spec: TrainSpec, scratch: Path, report: Report, say: Callable[[str], None]) -> TrainingResult:
    """Train, going on after every loss of workers, nodes or Ray's own processes.

    Args:
        scratch: a directory for what Ray Train writes; nothing reads it.
        say: for a line on the console.

    Raises:
        PipelineError: what a worker raised for the user; a `ClusterError` when workers died more often than
            ``cluster.max_failures`` without a new checkpoint, or the cluster is too small for too long.
    """
    run = RunConfig.model_validate(spec.run)
    directory = open_run(spec.run_dir, spec.identity)
    directory.prepare()
    patience = Patience(run.cluster.max_failures)
    waiting_since: float | None = None
    attempts = 0
    while True:
        found = directory.newest(say)
        step = found.step if found else None
        with ray_errors():  # what is refused here has been waited for: it is final
            workers = _workers(spec, run, directory, say)
        if waiting_since is None:
            attempts += 1
            if attempts > 1 or step is not None:
                where = "from the start" if step is None else f"from step {step}"
                say(f"goes on {where} with {workers} worker(s)")
        began = time.monotonic()
        try:
            result = _attempt(spec, run.cluster, step, workers, scratch, report, say)
        except Exception as error:
            remove_placement_groups()
            if not is_lost(error):
                with ray_errors():
                    raise
            if is_waiting(error):
                waiting_since = began if waiting_since is None else waiting_since
                if time.monotonic() - waiting_since > run.cluster.resource_wait_s:
                    raise _never_started(workers, run.cluster) from error
                say("the workers did not start in time; looking again at what the cluster has")
                continue
            newest = directory.steps()
            patience = patience.after(newest[-1] if newest else 0)
            if patience.exhausted:
                raise _given_up(error, run.cluster) from error
            say(f"lost ({_short(error)}); trying again")
            time.sleep(_POLL_S)
            waiting_since = None
            continue
        waiting_since = None
        if "rolled_back" not in result:
            return TrainingResult(
                result["seconds_per_step"],
                attempts,
                int(result["checkpoints"]),
                result["checkpoint_seconds"],
                result.get("sent", {}),
            )
        say("the loss jumped; going back to the last good checkpoint at a lower rate")


def _workers(spec: TrainSpec, run: RunConfig, directory: RunDirectory, say: Callable[[str], None]) -> int:
    """How many workers to start: as many as are asked for, or as still fit and find memory and disk.

    Raises:
        ClusterError: when that is not enough for too long.
    """
    parameters = stored_size(local_copy(spec.model_dir)).parameters
    while True:
        workers = _room(run.cluster, say)
        there = len(directory.steps())
        require_nodes(run, spec.kind, parameters, workers, directory.where, say, checkpoints_there=there)
        if workers >= min(_room_now(run.cluster), run.cluster.num_workers):
            return workers  # else a node came back while memory was waited for


def _room(cluster: ClusterConfig, say: Callable[[str], None]) -> int:
    """As many workers as are asked for, or, after ``cluster.node_wait_s``, as still fit.

    Raises:
        ClusterError: when fewer than ``cluster.min_workers`` fit for longer than ``cluster.resource_wait_s``.
    """
    began = time.monotonic()
    told = False
    while (room := _room_now(cluster)) < cluster.num_workers:
        waited = time.monotonic() - began
        if room >= cluster.min_workers and waited >= cluster.node_wait_s:
            return room
        needs = amounts(_worker(cluster))
        if room < cluster.min_workers and waited > cluster.resource_wait_s:
            raise ClusterError(
                f"the cluster has room for {room} worker(s) with {needs} each, cluster.min_workers is "
                f"{cluster.min_workers}: add a node, or lower it; the same command goes on from the last checkpoint"
            )
        if not told:
            say(f"the cluster has room for {room} of {cluster.num_workers} workers with {needs} each; waiting for more")
            told = True
        time.sleep(_POLL_S)
    return cluster.num_workers


def _room_now(cluster: ClusterConfig) -> int:
    return places(node_resources(), _worker(cluster))


def _worker(cluster: ClusterConfig) -> dict[str, float]:
    """What one worker takes, by Ray's names."""
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}


def _attempt(
    spec: TrainSpec,
    cluster: ClusterConfig,
    resume: int | None,
    workers: int,
    scratch: Path,
    report: Report,
    say: Callable[[str], None],
) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = cluster.gpus_per_worker > 0
    # A name of its own: under one that was there before, Ray would go on from its own snapshot.
    name = f"{spec.name}-{uuid.uuid4().hex[:8]}"
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = cluster.gpus_per_worker
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(min(_START_S, cluster.resource_wait_s))
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.hang_s)
    try:
        with relayed(report) as relay, _watched(relay, cluster.hang_s, say):
            TorchTrainer(
                work,
                train_loop_config={"spec": spec, "relay": relay, "resume": resume},
                torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=max(1, int(cluster.hang_s))),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
                run_config=RayRunConfig(
                    name=name,
                    storage_path=str(scratch),
                    failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                ),
            ).fit()
            result: dict[str, Any] = ray.get(relay.result.remote())
            return result
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


@contextlib.contextmanager
def _watched(relay: Any, hang_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Kill the workers of the block when they say nothing for ``hang_s`` seconds: Ray asks whether a worker's process
    answers, which one that hangs in a collective does."""
    import ray

    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_S) and ray.is_initialized():
            with contextlib.suppress(ray.exceptions.RayError):
                silent, workers = ray.get(relay.silence.remote())
                if silent > hang_s:
                    say(f"the workers made no step for {hang_s:g} s (cluster.hang_s); ending them")
                    for worker in workers:
                        ray.kill(worker)
                    return

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _never_started(workers: int, cluster: ClusterConfig) -> PipelineError:
    return ClusterError(
        f"{workers} train worker(s) with {amounts(_worker(cluster))} each did not start within "
        f"cluster.resource_wait_s = {cluster.resource_wait_s:g} s: something else holds the cluster's resources "
        "(`ray status`); free them or raise the limit, then run the same command again"
    )


def _given_up(error: BaseException, cluster: ClusterConfig) -> PipelineError:
    return ClusterError(
        f"the train workers were lost more than {cluster.max_failures} time(s) (cluster.max_failures) without a new "
        f"checkpoint; the last time: {_short(error)}. See to the cause, then run the same command again: it goes on "
        "from the last checkpoint"
    )


def _short(error: BaseException) -> str:
    try:
        with ray_errors():
            raise error
    except Exception as inner:
        lines = str(inner).strip().splitlines() or [type(inner).__name__]
        # The job goes on by itself: the advice that ends such a message elsewhere is not for here.
        return lines[0].split("; run the same command")[0][:200]
