"""A pool of Ray actors that works through calls and outlives the death of single actors.

::

    calls (lazy) ──► waiting ──► a started actor ──► on_result(index, result)
                        ▲              │ its process dies
                        └── first ─────┴──► a new actor takes its place, and after three deaths `ClusterError`
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.calls import Call, Deaths, Task, Waiting
from pipeline.cluster import amounts, node_resources, places, ray_errors
from pipeline.errors import ClusterError

_POLL_S = 5.0
_NO_PLACE_S = 300.0
"""How long a cluster that lost its last node for an actor has to bring one back."""


@dataclass(frozen=True)
class Pool:
    """What one actor needs, and how many there may be at once; the cluster may have room for fewer."""

    cpus: float
    gpus: float
    max_actors: int

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus) < 0 or max(self.cpus, self.gpus) <= 0 or self.max_actors < 1:
            raise ValueError(f"a pool needs CPUs or GPUs for an actor, and at least one actor: {self}")

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one actor, by Ray's names for them."""
        return {"CPU": self.cpus, "GPU": self.gpus}

    def size(self) -> int:
        """How many actors the connected cluster can hold at once, 1 to ``max_actors``."""
        return max(1, min(self.max_actors, places(node_resources(), self.needs)))


def map_over_actors(
    hosted: type[Any],
    arguments: tuple[Any, ...],
    pool: Pool,
    calls: Iterable[Call],
    on_result: Callable[[int, Any], None],
    *,
    on_death: Callable[[str], None] | None = None,
    lower: str = "reference.batch_tokens, reference.rows_per_shard, cluster.max_actors",
) -> None:
    """Do every call on a ``hosted(*arguments)`` that lives in one of several actors.

    A call is taken from ``calls`` only when there is an actor for it, and no result is kept here: the caller's
    memory does not grow with their number. Only an actor that has started is given work, and one without further
    work gives its resources back at once: two stages that share a small cluster would otherwise wait for each
    other's actors for ever. The call of an actor that dies goes first to the next free one.

    Args:
        on_result: called here with the number of a call and its result, in the order in which results arrive.
        on_death: called here with ``Call.what`` after an actor died over it and another one will do it again.
        lower: the options that let an actor need less memory, for the message.

    Raises:
        PipelineError: what hosted code raised for the user; nothing that it raises is tried again.
        ClusterError: when `pipeline.calls.MAX_DEATHS` actors died over one call, or in a row while starting, or when
            no node that can hold an actor is left.
    """
    waiting, deaths = Waiting(calls), Deaths(hosted.__name__, lower)
    with ray_errors():
        crew = _Crew(hosted, arguments, pool)
        try:
            for _ in range(waiting.at_most(pool.size())):
                crew.add()
            while waiting or crew.num_calls:
                event = crew.next_event()
                if event.death is not None:
                    _replace(event, event.death, crew, waiting, deaths, on_death)
                    continue
                if event.task is None:
                    deaths.started()
                else:
                    on_result(event.task[0], event.result)
                crew.give(event.actor, waiting.take())
                if not waiting:
                    crew.release_starting()
        finally:
            crew.kill()


def _replace(
    event: _Event,
    death: Exception,
    crew: _Crew,
    waiting: Waiting,
    deaths: Deaths,
    on_death: Callable[[str], None] | None,
) -> None:
    """Go on after a death, or raise what ends the map."""
    task, cause = event.task, _cause(death)
    if task is None:
        end = deaths.while_starting(cause, ran=not _lost_with_its_node(death))
    else:
        end = deaths.over_call(task[0], task[1].what, cause)
        waiting.give_back(task)
    if end is not None:
        raise end from death
    if waiting:
        crew.add()
    if task is not None and on_death is not None:
        on_death(task[1].what)


class _Host:
    """A Ray actor around any object, which it builds in a call: Ray drops the cause of an error in a constructor."""

    def start(self, hosted: type[Any], arguments: tuple[Any, ...]) -> None:
        self._hosted = hosted(*arguments)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._hosted, method)(*arguments)


@dataclass
class _Event:
    """An actor started (no task), finished a task, or died over either."""

    actor: Any
    task: Task | None
    result: Any = None
    death: Exception | None = None


class _Crew:
    """The actors of one map, each busy with its start or with one call."""

    def __init__(self, hosted: type[Any], arguments: tuple[Any, ...], pool: Pool) -> None:
        import ray

        self._remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(_Host)
        self._start, self._needs = (hosted, arguments), pool.needs
        self._actors: set[Any] = set()
        self._busy: dict[Any, tuple[Any, Task | None]] = {}

    @property
    def num_calls(self) -> int:
        return sum(task is not None for _, task in self._busy.values())

    def add(self) -> None:
        actor = self._remote.remote()
        self._actors.add(actor)
        self._busy[actor.start.remote(*self._start)] = (actor, None)

    def give(self, actor: Any, task: Task | None) -> None:
        """Let an actor that has nothing to do work on a task; without one it is released."""
        if task is None:
            self._kill(actor)
        else:
            self._busy[actor.call.remote(task[1].method, task[1].arguments)] = (actor, task)

    def release_starting(self) -> None:
        for reference, (actor, task) in list(self._busy.items()):
            if task is None:
                del self._busy[reference]
                self._kill(actor)

    def next_event(self) -> _Event:
        """Wait for an actor; one that died is forgotten. Raises what hosted code raised, and `ClusterError` when
        the actors that should start have no node."""
        import ray

        without_place_since: float | None = None
        while not (ready := ray.wait(list(self._busy), timeout=_POLL_S)[0]):
            if self.num_calls or places(node_resources(), self._needs):
                without_place_since = None
            elif without_place_since is None:
                without_place_since = time.monotonic()
            elif time.monotonic() - without_place_since > _NO_PLACE_S:
                raise ClusterError(
                    f"no node has had the {amounts(self._needs)} of an actor for {_NO_PLACE_S:g} s: add nodes to the "
                    "cluster (`ray status` lists them), then run the same command again to go on"
                )
        actor, task = self._busy.pop(ready[0])
        try:
            return _Event(actor, task, result=ray.get(ready[0]))
        except ray.exceptions.RayError as error:
            if not _is_death(error):
                raise
            self._kill(actor)  # it may only be out of reach, and hold its resources
            return _Event(actor, task, death=error)

    def kill(self) -> None:
        for actor in list(self._actors):
            self._kill(actor)

    def _kill(self, actor: Any) -> None:
        import ray

        self._actors.discard(actor)
        if ray.is_initialized():  # shut down by a job that ends while this stage still runs
            ray.kill(actor)


def _is_death(error: Exception) -> bool:
    """Whether an actor or its result was lost. What hosted code raised is none, even an error about another actor."""
    from ray import exceptions as lost

    if isinstance(error, lost.RayTaskError):
        return False
    return isinstance(
        error,
        lost.RayActorError
        | lost.OutOfMemoryError
        | lost.NodeDiedError
        | lost.WorkerCrashedError
        | lost.ObjectLostError,
    )


def _lost_with_its_node(error: Exception) -> bool:
    """Whether an actor was still waiting for its process when its node died."""
    # Ray says this in words only. Were they others, the death would count as any other.
    return "node has died" in str(error) and "never ran" in str(error)


def _cause(error: Exception) -> str:
    """Why an actor died, in a line. Ray's text begins with what every death has, and with indented particulars."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in rest if not line[:1].isspace()), first) if first.startswith("The actor") else first
    return textwrap.shorten(line.rpartition("Worker exit detail: ")[2], 160, placeholder=" ...").rstrip(".;")


class StandingActors:
    """``hosted(*arguments)`` in actors that stay between maps, for who comes with more calls later; a context.

    Args:
        lower: the options that let an actor need less memory, for the message.
    """

    def __init__(self, hosted: type[Any], arguments: tuple[Any, ...], pool: Pool, lower: str) -> None:
        self._deaths_of = hosted.__name__, lower
        self._crew = _StandingCrew(hosted, arguments, pool)
        self._size = pool.size()

    def __enter__(self) -> StandingActors:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._crew.kill()

    def map(self, calls: Sequence[Call], on_death: Callable[[str], None] | None = None) -> list[Any]:
        """Results of the calls, in their order. The arguments and errors are those of `map_over_actors`."""
        if not calls:
            return []
        waiting, deaths = Waiting(calls), Deaths(*self._deaths_of)
        results: list[Any] = [None] * len(calls)
        crew = self._crew
        with ray_errors():
            for _ in range(min(len(calls), self._size) - crew.size):
                crew.add()
            while crew.idle and (task := waiting.take()) is not None:
                crew.give(crew.idle.pop(), task)
            while waiting or crew.num_calls:
                event = crew.next_event()
                if event.death is not None:
                    _replace(event, event.death, crew, waiting, deaths, on_death)
                    continue
                if event.task is None:
                    deaths.started()
                else:
                    results[event.task[0]] = event.result
                crew.give(event.actor, waiting.take())
        return results


class _StandingCrew(_Crew):
    """Actors without work are kept."""

    def __init__(self, hosted: type[Any], arguments: tuple[Any, ...], pool: Pool) -> None:
        super().__init__(hosted, arguments, pool)
        self.idle: list[Any] = []

    @property
    def size(self) -> int:
        return len(self._actors)

    def give(self, actor: Any, task: Task | None) -> None:
        if task is None:
            self.idle.append(actor)
        else:
            super().give(actor, task)
