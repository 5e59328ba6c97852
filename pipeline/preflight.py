"""Whether the cluster's nodes have what a worker group needs, decided before it starts. Pure arithmetic.

Only what is clear is refused: the needs are what a training certainly takes, and a group is refused when it fits
nowhere. What depends on the batches (activations, a block of logits) and weights that are read straight from their
files, whose pages the kernel may give up, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config import GuardConfig, RunConfig
from pipeline.units import bytes_text

CHECKPOINT_BYTES = 12
"""Of one parameter in a checkpoint: float32 weight and two moments of Adam."""

_PROCESS_BYTES = 256 * 2**20
"""Less than a process takes that has imported torch, DeepSpeed and Ray."""
_SHARED_BYTES = 32 * 2**20
"""/dev/shm for one GPU worker's part in NCCL."""


@dataclass(frozen=True)
class NodeState:
    """What one node has at this moment."""

    address: str
    memory_available_bytes: int
    shared_memory_free_bytes: int
    """Free in /dev/shm."""
    storage_free_bytes: int
    """Free at the storage, as this node sees it."""
    places: int
    """Workers for which the node has CPUs and GPUs, used ones too."""


@dataclass(frozen=True)
class Needs:
    """What a worker group takes."""

    workers: int
    worker_bytes: int
    """Memory of one worker."""
    first_worker_bytes: int
    """Memory of the worker that gathers the weights to save them."""
    shared_bytes: int
    """/dev/shm for each worker; 0 without GPUs."""
    storage_bytes: int
    """Checkpoints that are still to be written."""
    storage: str


def checkpoints_held(keep: int, guard: GuardConfig) -> int:
    """Checkpoints of one training that lie in the storage at most: those kept, one to go back to, and the next."""
    return keep + (guard.on_spike == "roll_back") + 1


def needs_of(
    run: RunConfig,
    kind: Literal["sft", "align"],
    parameters: int,
    workers: int,
    storage: str,
    checkpoints_there: int,
) -> Needs:
    """What training takes.

    Args:
        parameters: of the model.
        checkpoints_there: how many of this training lie in the storage already.
    """
    stage = run.sft if kind == "sft" else run.train
    number = 2 if run.model.dtype == "bfloat16" else 4
    snapshot = CHECKPOINT_BYTES * parameters // workers
    on_gpu = run.cluster.gpus_per_worker > 0
    kept, gradients = (0, 0) if on_gpu else _state_bytes(stage.optim.zero_stage, parameters, workers, number)
    lacking = max(1, checkpoints_held(run.checkpoint.keep, stage.guard) - checkpoints_there)
    # Gradients, a checkpoint's copy and the gathered weights come after each other: whether two of them meet in memory
    # depends on how fast the disk is.
    return Needs(
        workers=workers,
        worker_bytes=_PROCESS_BYTES + kept + max(gradients, snapshot),
        first_worker_bytes=_PROCESS_BYTES + kept + max(gradients, snapshot, number * parameters),
        shared_bytes=_SHARED_BYTES if on_gpu else 0,
        storage_bytes=lacking * CHECKPOINT_BYTES * parameters,
        storage=storage,
    )


def _state_bytes(zero_stage: int, parameters: int, workers: int, number: int) -> tuple[int, int]:
    """What one worker keeps from step to step (weights, moments, master weights of bfloat16), and its gradients."""
    whole_weights = number * parameters
    optimiser = (8 if number == 4 else 12) * parameters
    if zero_stage == 0:
        return whole_weights + optimiser, whole_weights
    weights = whole_weights // workers if zero_stage == 3 else whole_weights
    return weights + optimiser // workers, whole_weights // workers


def storage_problem(needs: Needs, nodes: Sequence[NodeState]) -> str | None:
    """Why the checkpoints do not fit in the storage, or None. The node with the least is believed."""
    least = min(nodes, key=lambda node: node.storage_free_bytes, default=None)
    if least is None or least.storage_free_bytes >= needs.storage_bytes:
        return None
    return (
        f"storage {needs.storage} has {bytes_text(least.storage_free_bytes)} free (seen from node {least.address}), "
        f"but its checkpoints will take {bytes_text(needs.storage_bytes)} more: free some space, lower "
        "--checkpoint.keep, or set --storage to another disk"
    )


def room_problem(needs: Needs, nodes: Sequence[NodeState]) -> str | None:
    """Why the workers fit on the nodes in no arrangement, for memory or for shared memory; None when they do.

    Those for which there are no CPUs and GPUs are somebody else's business (`pipeline.cluster.shortage`).
    """
    workers = min(needs.workers, sum(node.places for node in nodes))
    if _room(needs, nodes, with_shared=False) < workers:
        return _explain_memory(needs, nodes)
    if _room(needs, nodes, with_shared=True) < workers:
        return _explain_shared(needs, nodes)
    return None


def _room(needs: Needs, nodes: Sequence[NodeState], *, with_shared: bool) -> int:
    """How many workers fit at most, the first one among them."""

    def fitting(node: NodeState, first: bool) -> int:
        left = node.memory_available_bytes - (needs.first_worker_bytes if first else 0)
        limits = [node.places, left // needs.worker_bytes + first if left >= 0 else 0]
        if with_shared and needs.shared_bytes:
            limits.append(node.shared_memory_free_bytes // needs.shared_bytes)
        return min(limits)

    others = [fitting(node, first=False) for node in nodes]
    room = 0
    for index, node in enumerate(nodes):
        here = fitting(node, first=True)
        if here:
            room = max(room, here + sum(others[:index] + others[index + 1 :]))
    return room


def _explain_memory(needs: Needs, nodes: Sequence[NodeState]) -> str:
    there = ", ".join(f"{node.address} has {bytes_text(node.memory_available_bytes)}" for node in nodes)
    first = needs.first_worker_bytes
    more = f", the first one {bytes_text(first)}" if first > needs.worker_bytes else ""
    return (
        f"memory for {needs.workers} train worker(s): each takes at least {bytes_text(needs.worker_bytes)}{more}, but "
        f"{_places(needs, nodes, with_shared=False)} ({there}): give the nodes or their "
        "containers more memory, add nodes and raise --cluster.num_workers, choose a smaller model, or "
        "optim.zero_stage 3, which divides the most among the workers"
    )


def _explain_shared(needs: Needs, nodes: Sequence[NodeState]) -> str:
    there = ", ".join(f"{node.address} has {bytes_text(node.shared_memory_free_bytes)}" for node in nodes)
    return (
        f"shared memory for {needs.workers} train worker(s) on GPUs: each takes {bytes_text(needs.shared_bytes)} of "
        f"/dev/shm, but {_places(needs, nodes, with_shared=True)} ({there}): give the containers more of it "
        "(docker run --shm-size=1g; in Kubernetes an emptyDir with medium Memory, mounted there)"
    )


def _places(needs: Needs, nodes: Sequence[NodeState], *, with_shared: bool) -> str:
    return f"the nodes have room for {_room(needs, nodes, with_shared=with_shared)} with what is available now"
