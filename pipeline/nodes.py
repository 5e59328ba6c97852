"""What the nodes of the joined Ray cluster have, and the refusal of a worker group that clearly does not fit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.cluster import alive_nodes, on_every_node, places
from pipeline.config import RunConfig
from pipeline.disk import existing
from pipeline.errors import ClusterError
from pipeline.memory import available_bytes
from pipeline.preflight import NodeState, checkpoints_held, needs_of, room_problem, storage_problem
from pipeline.surroundings import node_scratch

_SETTLE_S = 10.0
"""Processes that were just ended give their memory back within this time."""
_POLL_S = 1.0


def node_states(storage: str, worker: dict[str, float]) -> list[NodeState]:
    """The state of every node that is alive and answers, measured there now.

    Args:
        storage: a directory, or a URL for whose scratch there must be room on every node.
        worker: resources of one worker by Ray's names for them.
    """
    return [
        NodeState(node["NodeManagerAddress"], *measured, places=places([node["Resources"]], worker))
        for node, measured in on_every_node(_measure, storage)
        if measured is not None
    ]


def _measure(storage: str) -> tuple[int, int, int]:
    shared = Path("/dev/shm")
    return (
        available_bytes(),
        shutil.disk_usage(shared).free if shared.is_dir() else 0,
        shutil.disk_usage(existing(node_scratch(storage) if "://" in storage else Path(storage))).free,
    )


def require_nodes(
    run: RunConfig,
    kind: Literal["sft", "align"],
    parameters: int,
    workers: int,
    storage: str,
    say: Callable[[str], None],
    *,
    checkpoints_there: int = 0,
) -> None:
    """Refuse a worker group that clearly does not fit. Memory that other work holds, or that a lost node had, is waited
    for, as long as ``cluster.resource_wait_s``.

    Args:
        parameters: of the model (`pipeline.models.size.stored_size`).
        workers: how many are to be started.
        storage: where the checkpoints are written, a directory or a URL.
        say: for a line on the console when it is waited for memory.
        checkpoints_there: how many of this training lie there already.

    Raises:
        ClusterError: saying which node has what, what is needed, and what to change.
    """
    if "://" in storage:  # a node holds the one that is on its way, and the one that it goes on from
        stage = run.sft if kind == "sft" else run.train
        checkpoints_there = max(0, checkpoints_held(run.checkpoint.keep, stage.guard) - 2)
    needs = needs_of(run, kind, parameters, workers, storage, checkpoints_there)
    worker: dict[str, float] = {"CPU": run.cluster.cpus_per_worker, "GPU": run.cluster.gpus_per_worker}
    began = time.monotonic()
    told = False
    while True:
        states = node_states(storage, worker)
        lasting, passing = storage_problem(needs, states), room_problem(needs, states)
        found = lasting or passing
        if found is None:
            return
        shrunk = workers < run.cluster.num_workers  # what is lacking may come back
        patient = passing and not lasting and (shrunk or _others_run() or len(states) < len(alive_nodes()))
        if time.monotonic() - began > (run.cluster.resource_wait_s if patient else _SETTLE_S):
            raise ClusterError(f"the training does not fit: {found}")
        if patient and not told:
            whose = "a lost node had" if shrunk else "other work on the cluster holds"
            say(f"waits for memory that {whose}: {found}")
            told = True
        time.sleep(_POLL_S)


def _others_run() -> bool:
    """Whether anybody holds CPUs or GPUs of the cluster."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return any(free.get(kind, 0) < total.get(kind, 0) for kind in ("CPU", "GPU"))
