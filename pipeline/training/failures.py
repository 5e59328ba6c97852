"""Whether a failed training is worth another try, decided from the exceptions alone. Pure.

What is lost (a process, a node, a connection) is tried again. What the program or its user did wrong would only go
wrong again, and ends the job at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.errors import ClusterError, PipelineError

LOST = frozenset(
    {
        # Ray's, by name, so that this module needs no Ray
        "RayActorError",
        "ActorUnavailableError",
        "ActorPlacementGroupRemoved",
        "WorkerCrashedError",
        "NodeDiedError",
        "ObjectLostError",
        "OwnerDiedError",
        "OutOfMemoryError",
        "RpcError",
        # Ray Train's
        "WorkerGroupStartupTimeoutError",
        "WorkerGroupStartupFailedError",
        "WorkerHealthCheckTimeoutError",
        "WorkerHealthCheckFailedError",
        "CollectiveTimeoutError",
        "PreemptionError",
        # torch's
        "DistBackendError",
        "DistNetworkError",
        "DistStoreError",
    }
)

STARTING = frozenset({"WorkerGroupStartupTimeoutError"})

_GLOO_MISUSE = "enforce fail"
"""What gloo says when the ranks ask for different things, which they would do again."""


def leaves(error: BaseException) -> list[BaseException]:
    """What went wrong in each worker; the error itself when it does not come from workers."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return list(failures.values())
    controller = getattr(error, "controller_failure", None)
    return [controller] if isinstance(controller, BaseException) else [error]


def is_lost(error: BaseException) -> bool:
    """Whether all that went wrong is that something was lost."""
    return all(_leaf_is_lost(leaf) for leaf in leaves(error))


def is_waiting(error: BaseException) -> bool:
    """Whether the workers never started, for want of resources."""
    return all(any(_names(link) & STARTING for link in _chain(leaf)) for leaf in leaves(error))


def _leaf_is_lost(leaf: BaseException) -> bool:
    chain = list(_chain(leaf))
    if any(isinstance(link, PipelineError) and not isinstance(link, ClusterError) for link in chain):
        return False
    return any(_names(link) & LOST or isinstance(link, ClusterError) or _is_gloo(link) for link in chain)


def _is_gloo(error: BaseException) -> bool:
    """Gloo has no exception of its own for a peer that is gone, and many words for it."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "gloo" in text and _GLOO_MISUSE not in text


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error with everything it was wrapped around."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if any(link is one for one in seen):
            continue
        seen.append(link)
        yield link
        inner = (getattr(link, name, None) for name in ("cause", "_exc", "_base_exc", "health_check_failure"))
        waiting += [one for one in (*inner, link.__cause__, *leaves(link)) if isinstance(one, BaseException)]


@dataclass(frozen=True)
class Patience:
    """How often one more try is granted: a training that gets on may fail any number of times."""

    limit: int
    """Failures without a new checkpoint in between."""
    failures: int = 0
    step: int = -1
    """Of the newest checkpoint at the last failure."""

    def after(self, step: int) -> Patience:
        """After one more failure, with the newest checkpoint at ``step``."""
        # A lower step is a new checkpoint too, of a run that had to go back behind damaged ones.
        return replace(self, failures=self.failures + 1 if step == self.step else 1, step=step)

    @property
    def exhausted(self) -> bool:
        return self.failures > self.limit
