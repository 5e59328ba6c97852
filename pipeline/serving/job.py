"""Serving until a signal says that it is enough: the command of jobs/serve.py."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from pipeline.config import ClusterConfig
from pipeline.console import Console, quiet_libraries
from pipeline.errors import ClusterError
from pipeline.serving.options import GuardOptions
from pipeline.storage import open_storage

_LOCAL = ("127.0.0.1", "::1", "localhost")


class ServeOptions(GuardOptions):
    """The options of the guard, and where it listens."""

    host: str = "127.0.0.1"
    """Address to listen at: this machine only, unless another one is named (0.0.0.0 is every network)."""
    port: int = Field(8000, ge=1, le=65535)
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """A running Ray cluster to join (default: the one on this machine, or a new one)."""


def serve_until_stopped(options: ServeOptions) -> int:
    """Serve, and drain when SIGTERM or SIGINT comes.

    Raises:
        ClusterError: when the port is taken, Serve runs on the cluster already, or the guard cannot start.
        PipelineError: what keeps the guard from starting: no registry, no such line, no token.
    """
    from pipeline.release.where import Where

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    storage = open_storage(options.storage)
    line = Where(options.storage, options.registry_root, options.line).open()
    _refuse_busy_port(options.host, options.port)
    quiet_libraries(storage.here / "logs" / f"serve-{os.getpid()}.log")
    stop = threading.Event()
    with Console() as console, _started(options, stop):
        console.line(f"serving {options.alias} of line {line.name} at http://{_shown(options.host)}:{options.port}/v1")
        if options.token_env is None and options.host not in _LOCAL:
            console.line(
                f"note: whoever reaches {options.host}:{options.port} may ask: set --token_env to ask for a token"
            )
        console.line(f"metrics for Prometheus: {', '.join(_metrics())}")
        stop.wait()
        console.line("draining: requests under way are answered, others are refused")
    return 0


@contextlib.contextmanager
def _started(options: ServeOptions, stop: threading.Event) -> Iterator[None]:
    """Ray, Serve on it, and the guard on that; drained and taken down at the end. Signals set the event meanwhile."""
    from pipeline.cluster import connected

    cluster = ClusterConfig(
        address=options.address,
        num_workers=options.replicas,
        cpus_per_worker=options.cpus_per_replica,
        gpus_per_worker=options.gpus_per_replica,
        cpus_per_actor=options.cpus_per_replica,
        gpus_per_actor=options.gpus_per_replica,
    )
    # Behind Ray, which has handlers of its own.
    with connected(cluster, open_storage(options.storage)) as told, _signals(stop):
        from ray import serve

        from pipeline.serving.app import NAME, build

        if serve.status().proxies:
            raise ClusterError(
                "Ray Serve runs on this cluster already: deploy pipeline.serving.app:build there (`serve deploy`), or "
                "set --address local"
            )
        serve.start(proxy_location="HeadOnly", http_options={"host": options.host, "port": options.port})
        try:
            try:
                serve.run(build(for_replicas(options)), name=NAME, logging_config={"enable_access_log": False})
            except RuntimeError as error:
                raise ClusterError(f"the guard did not start: {_why(NAME, error)}") from error
            yield
            serve.delete(NAME)  # which waits until what is under way is answered
        finally:
            if told.startswith("joined"):  # a Ray of our own ends with this process
                serve.shutdown()


def for_replicas(options: ServeOptions) -> GuardOptions:
    """The guard's own options. Paths are made absolute: on a Ray that runs already, a replica has the working directory
    in which that was started."""
    found = {name: getattr(options, name) for name in GuardOptions.model_fields}
    found["storage"] = open_storage(options.storage).root
    for name in ("registry_root", "log"):
        if found[name] is not None and "://" not in found[name]:
            found[name] = str(Path(found[name]).expanduser().absolute())
    return GuardOptions(**found)


def _why(name: str, error: Exception) -> str:
    """The line that says what happened, out of the traceback that Serve keeps of a replica that failed."""
    from ray import serve

    status = serve.status().applications.get(name)
    told = "" if status is None else "\n".join([status.message, *(d.message for d in status.deployments.values())])
    lines = [line.strip() for line in (told or str(error)).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("pipeline.errors.")]
    return errors[0].partition(": ")[2] if errors else (lines or ["no reason was given"])[-1]


def _metrics() -> list[str]:
    from pipeline.cluster import alive_nodes

    return [f"http://{_shown(n['NodeManagerAddress'])}:{n['MetricsExportPort']}/metrics" for n in alive_nodes()]


def _refuse_busy_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"--host, --port: cannot listen at {host}:{port} ({error.strerror}); choose another one"
            ) from error


def _shown(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets the event, another one interrupts."""

    def heard(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
