"""Progress of work in other processes, relayed to the job's console."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[float, float, str], None]

_POLL_S = 0.5


class _Relay:
    """Keeps the latest report of one piece of work, and numbers that belong in no artefact (a Ray actor that uses
    no CPU)."""

    def __init__(self) -> None:
        self._latest: tuple[float, float, str] | None = None
        self._result: dict[str, Any] = {}
        self._workers: list[Any] = []
        self._heard = time.monotonic()

    def put(self, done: float, total: float, note: str) -> None:
        self._latest = (done, total, note)
        self._heard = time.monotonic()

    def join(self, worker: Any) -> None:
        self._workers.append(worker)
        self._heard = time.monotonic()

    def silence(self) -> tuple[float, list[Any]]:
        return (time.monotonic() - self._heard if self._workers else 0.0), self._workers

    def get(self) -> tuple[float, float, str] | None:
        return self._latest

    def put_result(self, result: dict[str, Any]) -> None:
        self._result = result

    def result(self) -> dict[str, Any]:
        return self._result


@contextlib.contextmanager
def relayed(report: Report) -> Iterator[Any]:
    """An actor handle for workers; what they put into it is passed to ``report`` twice a second."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver: the loss of another node must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    relay = ray.remote(num_cpus=0)(_Relay).options(scheduling_strategy=here).remote()
    stop = threading.Event()

    def poll() -> None:
        last = None
        while not stop.wait(_POLL_S) and ray.is_initialized():
            try:
                latest = ray.get(relay.get.remote())
            except ray.exceptions.RayError:
                continue
            except Exception:
                if ray.is_initialized():
                    raise
                return  # Ray was shut down in the middle of the call, as after Ctrl-C
            if latest is not None and latest != last:
                report(*latest)
                last = latest

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(relay)


def reporter(relay: Any) -> Report:
    """For a worker: a function that reports without waiting, at most twice a second and at the end."""
    last = 0.0

    def report(done: float, total: float, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _POLL_S or done >= total:
            last = now
            relay.put.remote(done, total, note)

    return report
