"""Connecting to Ray, and whether a cluster has what a run needs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError
from pipeline.storage import Storage, write_problem

_CONNECT_TIMEOUT_S = 5.0
_POLL_S = 2.0
_ANSWER_S = 60.0
"""For every node's answer to a question; a busy one takes seconds to start a process."""

T = TypeVar("T")


@contextlib.contextmanager
def connected(
    config: ClusterConfig, storage: Storage, reference_threads: int = 1, least_workers: int | None = None
) -> Iterator[str]:
    """Join the configured cluster, or one that ``ray start`` made on this machine, or start a local one; yields a
    line that says which. Checks resources, and that every node sees the storage.

    Args:
        reference_threads: CPUs of an actor that hosts the reference (``reference.threads``).
        least_workers: for which there must be room; None is ``cluster.num_workers``.

    Raises:
        ClusterError: when the address is dead, the resources do not suffice, or a node does not see the storage.
    """
    # Polled by Train's controller: two seconds more at the end of every stage otherwise.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # A stage that still runs when another one has failed must not start a new Ray after the shutdown below.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
        "namespace": f"ra-dpo-{uuid.uuid4().hex[:8]}",
    }
    address = config.address or os.environ.get("RAY_ADDRESS") or _running_here() or "local"
    if address != "local":
        _refuse_dead_address(address)
    else:
        if config.dashboard_port is not None:
            _refuse_busy_port(config.dashboard_port)
        # What a local Ray does anyway; said before it is imported, it does not print a notice about it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if address != "local":
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"cluster.address: cannot join the Ray cluster at {address!r}: {_first_line(error)}; "
                "check `ray status`, and RAY_AUTH_MODE=token if the cluster asks for a token"
            ) from error
        described = f"joined the Ray cluster at {address}"
    else:
        try:
            ray.init(
                address="local",
                include_dashboard=config.dashboard_port is not None,
                dashboard_port=config.dashboard_port,
                **options,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(f"cannot start Ray on this machine: {_first_line(error)}") from error
        described = "started Ray on this machine"
    try:
        _await_resources(config, reference_threads, config.num_workers if least_workers is None else least_workers)
        if storage.is_local:
            check_visible(storage.here, "--storage")
        else:
            check_reachable(storage.root, "--storage")
        cpus = ray.cluster_resources().get("CPU", 0)
        gpus = ray.cluster_resources().get("GPU", 0)
        yield f"{described}: {len(alive_nodes())} node(s), {cpus:g} CPUs, {gpus:g} GPUs"
    finally:
        if config.autoscaling:
            _release_request()
        ray.shutdown()


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that is alive: ``NodeID``, ``NodeManagerAddress``, ``Resources`` and more."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def node_resources() -> list[dict[str, float]]:
    """All resources of each node that is alive, used ones too, by Ray's names for them."""
    return [node["Resources"] for node in alive_nodes()]


def remove_placement_groups() -> None:
    """Give back what this job's placement groups hold: one outlives the process that made it (Ray Train's
    controller) for as long as the job's driver lives."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    with contextlib.suppress(ray.exceptions.RayError):
        job = ray.get_runtime_context().get_job_id()
        for name, group in placement_group_table().items():
            # The last four bytes of a group's id are those of the job that made it.
            if name.endswith(job) and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _running_here() -> str | None:
    """Address of a cluster that ``ray start`` made on this machine and that still answers."""
    # Where Ray writes it; asking Ray would import it before its environment is decided.
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(temporary) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def _refuse_dead_address(address: str) -> None:
    if address == "auto":
        if _running_here() is None:
            raise ClusterError(
                "cluster.address 'auto': no running Ray cluster was found on this machine; "
                "start one with `ray start --head`, or leave the option out to start a local one"
            )
        return
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"cluster.address: {address!r} is the address of a dashboard, for submitting jobs; give host:port of "
            "the head node (`ray start --head` prints it), or use `ray job submit --address` with this one"
        )
    if "://" not in address and not _answers(address):
        raise ClusterError(
            f"cluster.address: nothing answers at {address!r}; give host:port of a running head node "
            "(`ray start --head` prints it), or leave the option out to start a local Ray"
        )


def _refuse_busy_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(
                f"cluster.dashboard_port: port {port} is in use ({error.strerror}); choose another one"
            ) from error


def _await_resources(config: ClusterConfig, reference_threads: int, least_workers: int) -> None:
    actor = {"CPU": max(config.cpus_per_actor, reference_threads), "GPU": config.gpus_per_actor}
    deadline = time.monotonic() + config.resource_wait_s
    requested = False
    while True:
        problem = shortage(least_workers, actor, config, node_resources())
        if problem is None:
            return
        if not config.autoscaling:
            raise ClusterError(problem + "; lower the options, or set --cluster.autoscaling if the cluster can grow")
        if not requested:
            from ray.autoscaler.sdk import request_resources

            worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
            bundles = [worker] * config.num_workers
            if any(actor[kind] > worker[kind] for kind in actor):
                bundles.append(dict(actor))  # workers leave no place for it
            request_resources(bundles=[{kind: value for kind, value in b.items() if value} for b in bundles])
            requested = True
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{problem}, and the cluster did not grow within cluster.resource_wait_s = {config.resource_wait_s:g} s"
            )
        time.sleep(_POLL_S)


def _release_request() -> None:
    """Withdraw the request for resources, which would keep the grown cluster at its size for ever."""
    from ray.autoscaler.sdk import request_resources

    with contextlib.suppress(Exception):  # the cluster may be gone, and with it the request
        request_resources(num_cpus=0)


def shortage(
    least_workers: int,
    actor: Mapping[str, float],
    config: ClusterConfig,
    nodes: Sequence[Mapping[str, float]],
) -> str | None:
    """What the cluster lacks for this run, or None. Pure: ``nodes`` are the resources of each node.

    A worker or an actor lives on one node, so workers are counted node by node.
    """
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    room = places(nodes, worker)
    if room < least_workers:
        needs = {kind: least_workers * amount for kind, amount in worker.items()}
        option = "num_workers" if least_workers == config.num_workers else "min_workers"
        have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
        return (
            f"cluster.{option} is {least_workers} with {amounts(worker)} each ({amounts(needs)} together), but "
            f"the cluster of {len(nodes)} node(s) has {amounts(have) or 'none'} and room for {room}"
        )
    if not places(nodes, actor):
        return (
            f"no node has the {amounts(actor)} of an actor (cluster.cpus_per_actor and reference.threads, "
            "cluster.gpus_per_actor)"
        )
    return None


def runs_that_fit(nodes: Sequence[Mapping[str, float]], config: ClusterConfig) -> int:
    """For how many runs side by side there is room, each with all its workers, or with one actor at least; pure. What
    hosts the reference does not count: that is computed before they begin.

    A run holds workers or actors, never both, and its workers are placed all at once: so many runs cannot keep each
    other from going on.
    """
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    actor = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    return min(places(nodes, worker) // config.num_workers, places(nodes, actor))


def places(nodes: Iterable[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers or actors with these needs fit on the nodes, each of them on one node; pure.

    Args:
        nodes: resources of each node by Ray's names for them, such as CPU.
        needs: resources of one; at least one amount is above zero.
    """
    return sum(
        min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in needs.items() if amount) for node in nodes
    )


def amounts(resources: Mapping[str, float]) -> str:
    """Resources in words, those of which there is some."""
    return " and ".join(f"{amount:g} {kind}(s)" for kind, amount in resources.items() if amount)


def on_every_node(function: Callable[..., T], *arguments: Any) -> list[tuple[dict[str, Any], T | None]]:
    """Call ``function`` in a process on every node that is alive; None for a node that gives no answer (it died, or is
    too busy to start a process)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def ask(*arguments: Any) -> T:
        return function(*arguments)

    asked = [
        (
            node,
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                *arguments
            ),
        )
        for node in alive_nodes()
    ]
    deadline = time.monotonic() + _ANSWER_S
    answers: list[tuple[dict[str, Any], T | None]] = []
    for node, answer in asked:
        found: T | None = None
        with contextlib.suppress(ray.exceptions.RayError):
            found = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        answers.append((node, found))
    return answers


def check_visible(directory: Path, option: str) -> None:
    """Every node must see the same directory: files pass between processes through it.

    Raises:
        ClusterError: naming the nodes that do not, and the option that chooses another directory.
    """
    if len(alive_nodes()) == 1:
        return
    probe = directory / f".probe-{uuid.uuid4().hex}"
    probe.write_text("")
    try:
        blind = [node["NodeManagerAddress"] for node, seen in on_every_node(os.path.isfile, str(probe)) if not seen]
    finally:
        probe.unlink()
    if blind:
        raise ClusterError(
            f"{option}: {directory} is not visible on node(s) {', '.join(blind)}; set it to a directory that every "
            "node mounts"
        )


def check_reachable(root: str, option: str) -> None:
    """Every node must reach the same URL, with what its processes were given when its Ray was started.

    Raises:
        ClusterError: naming the nodes that do not, why, and what to do.
    """
    answers = [(node["NodeManagerAddress"], answer) for node, answer in on_every_node(_problem_there, root)]
    blind = {address: "it did not answer" if answer is None else answer for address, answer in answers if answer != ""}
    if blind:
        raise ClusterError(
            f"{option}: {root} cannot be used from node(s) {', '.join(blind)}: {next(iter(blind.values()))}. Start Ray "
            "on every node with the address and credentials of the store in its environment (for S3 the AWS_ "
            "variables), and with the same packages"
        )


def _problem_there(root: str) -> str:
    return write_problem(root) or ""


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Raise the pipeline's own error out of whatever Ray wrapped it in; other failures keep their cause."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise _innermost(error) from error
    except Exception as error:
        if hasattr(error, "worker_failures") or hasattr(error, "controller_failure"):
            raise _innermost(error) from error
        raise


def _innermost(error: BaseException) -> BaseException:
    """The first `PipelineError` in a chain of wrapped errors, or a short description of the failure."""
    import ray

    seen: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.append(current)
        if isinstance(current, PipelineError) and not isinstance(current, ray.exceptions.RayError):
            return current
        waiting += list(getattr(current, "worker_failures", {}).values())
        for name in ("cause", "controller_failure", "__cause__", "_exc"):
            inner = getattr(current, name, None)
            if isinstance(inner, BaseException):
                waiting.append(inner)
    root = seen[-1]
    lost = ray.exceptions
    if isinstance(root, lost.OutOfMemoryError):
        return ClusterError(
            f"a worker ran out of memory: {_first_line(root)}; lower the micro_batch_size or train.head_block_bytes"
        )
    if isinstance(root, lost.RayActorError | lost.WorkerCrashedError | lost.NodeDiedError | lost.ObjectLostError):
        return ClusterError(f"a worker process died: {_first_line(root)}; run the same command again to go on")
    return root


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
