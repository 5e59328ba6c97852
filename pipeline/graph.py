"""A graph of stages over content-addressed artefacts.

The key of a stage is a digest of its own options, its declared version, the versions of the libraries it
computes with, the contents it reads from outside, and the keys of its inputs. A stage whose artefact is
committed is not run; running the same job again is therefore the resume. Independent stages run side by side. Of
several jobs that need a stage at the same time one runs it, and the others wait for its result.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts import Artifact, Store
from pipeline.digests import digest_json
from pipeline.errors import ArtifactError

ARTIFACT_FORMAT = 2
"""Part of every key: artefacts with a manifest of another form are left alone."""


class Observer(Protocol):
    """Who is told what the graph does (a console, a test)."""

    def stage_started(self, name: str) -> None: ...
    def stage_progress(self, name: str, done: float, total: float, note: str = "") -> None: ...
    def stage_finished(self, name: str, seconds: float, note: str = "") -> None: ...
    def stage_reused(self, name: str) -> None: ...
    def stage_failed(self, name: str, message: str) -> None: ...
    def line(self, text: str) -> None: ...


@dataclass
class StageContext:
    """What a running stage gets: where to write, its inputs, and how to report progress."""

    out_dir: Path
    inputs: Mapping[str, Artifact]
    progress: Callable[[float, float, str], None]
    info: dict[str, Any]
    """Notes kept beside the artefact; ``info["note"]`` is the stage's line on the console."""
    say: Callable[[str], None]
    """A line for the console now."""
    where: str
    """Where workers on any node may put files of the artefact: ``out_dir``, or a URL."""
    sent: dict[str, dict[str, Any]]
    """What they have put at a URL (`pipeline.artifacts.Staging`)."""


@dataclass(frozen=True)
class Stage:
    """One node. ``options`` and ``contents`` (digests of what is read from outside) make its key."""

    name: str
    version: int
    """Raise it when the stage's code changes what it writes."""
    run: Callable[[StageContext], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Artifact], None] | None = None
    """Looks at what the artefact points to outside the store, before one of ``read_by`` reads it; raises
    `ArtifactError` when the stage has to run again."""
    read_by: tuple[str, ...] = ()
    local: bool = False
    """It computes in the process of the job itself, and needs no cluster."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its key and what the key was made of."""

    stage: Stage
    key: str
    made_from: Mapping[str, Any]


def plan(stages: Sequence[Stage], versions: Mapping[str, str]) -> dict[str, PlannedStage]:
    """Key of every stage, in an order in which inputs come first.

    Raises:
        ValueError: for an unknown or circular input, or a repeated name (a fault of the graph's author).
    """
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) != len(stages):
        raise ValueError("two stages have the same name")
    planned: dict[str, PlannedStage] = {}
    waiting = list(stages)
    while waiting:
        ready = [stage for stage in waiting if all(name in planned for name in stage.inputs)]
        if not ready:
            raise ValueError(f"unknown or circular inputs among {[stage.name for stage in waiting]}")
        for stage in ready:
            made_from = {
                "artifact": ARTIFACT_FORMAT,
                "stage": stage.name,
                "version": stage.version,
                "options": stage.options,
                "libraries": versions,
                "contents": stage.contents,
                "inputs": {name: planned[name].key for name in stage.inputs},
            }
            planned[stage.name] = PlannedStage(stage, digest_json(made_from)[:32], made_from)
            waiting.remove(stage)
    return planned


def up_to(planned: Mapping[str, PlannedStage], names: Collection[str]) -> dict[str, PlannedStage]:
    """Some stages and everything that they need, in the same order."""
    needed = set(names)
    for other, item in reversed(list(planned.items())):
        if other in needed:
            needed.update(item.stage.inputs)
    return {other: item for other, item in planned.items() if other in needed}


def reuse(planned: Mapping[str, PlannedStage], store: Store, observer: Observer) -> dict[str, Artifact]:
    """Every artefact that is committed, verified; a damaged one is removed, to be made again."""
    found = ((name, _reuse(item, store, observer, is_read(item, planned, store))) for name, item in planned.items())
    return {name: artifact for name, artifact in found if artifact is not None}


def is_read(item: PlannedStage, planned: Mapping[str, PlannedStage], store: Store) -> bool:
    """Whether what a stage points to will be read: a reader has still to run, or the stage is what is asked for."""
    readers = [planned[name] for name in item.stage.read_by if name in planned]
    return not readers or any(not store.exists(one.stage.name, one.key) for one in readers)


def execute(
    planned: Mapping[str, PlannedStage],
    store: Store,
    observer: Observer,
    have: Mapping[str, Artifact] | None = None,
) -> dict[str, Artifact]:
    """Run what is missing and return every artefact, verified.

    ``have`` are the artefacts that are there already (None: whatever `reuse` finds). The first failure stops
    the start of further stages and is raised; stages that run at that moment are left to the end of the process
    (their artefacts are not committed half-done in any case).
    """
    artifacts = dict(reuse(planned, store, observer) if have is None else have)
    running: set[str] = set()
    results: queue.Queue[tuple[str, Artifact | BaseException]] = queue.Queue()

    def work(item: PlannedStage) -> None:
        try:
            results.put((item.stage.name, _obtain(item, planned, artifacts, store, observer)))
        except BaseException as error:
            results.put((item.stage.name, error))

    while any(name not in artifacts for name in planned):
        for name, item in planned.items():
            if name in artifacts or name in running or any(need not in artifacts for need in item.stage.inputs):
                continue
            running.add(name)
            # Daemon threads: a failure elsewhere must be able to end the process at once.
            threading.Thread(target=work, args=(item,), name=f"stage-{name}", daemon=True).start()
        finished = [results.get()]
        while not results.empty():  # a failure that waits behind a success must stop what that would start
            finished.append(results.get())
        for name, result in finished:
            running.discard(name)
            if isinstance(result, BaseException):
                observer.stage_failed(name, str(result))
                raise result
            artifacts[name] = result
    return artifacts


def _reuse(item: PlannedStage, store: Store, observer: Observer, check: bool) -> Artifact | None:
    name, key = item.stage.name, item.key
    try:
        artifact = store.open(name, key)
        if check and item.stage.check is not None:
            item.stage.check(artifact)
    except KeyError:
        return None
    except ArtifactError as error:
        observer.line(f"{name}: {error} -- making it again")
        store.discard(name, key)
        return None
    observer.stage_reused(name)
    return artifact


def _obtain(
    item: PlannedStage,
    planned: Mapping[str, PlannedStage],
    artifacts: Mapping[str, Artifact],
    store: Store,
    observer: Observer,
) -> Artifact:
    """Run a stage, or take what another job made of it meanwhile.

    Two jobs cannot wait for each other: a job claims a stage when its inputs are there, and lets go when it ends.
    """
    name = item.stage.name

    def waiting(owner: str) -> None:
        observer.line(f"{name}: another job computes this ({owner}); waiting for its result")

    with store.claim(name, item.key, waiting):
        made = _reuse(item, store, observer, is_read(item, planned, store))
        return _run_stage(item, artifacts, store, observer) if made is None else made


def _run_stage(item: PlannedStage, artifacts: Mapping[str, Artifact], store: Store, observer: Observer) -> Artifact:
    stage = item.stage
    observer.stage_started(stage.name)
    with store.stage(stage.name, item.key, item.made_from) as staging:
        inputs = {name: artifacts[name] for name in stage.inputs}

        def progress(done: float, total: float, note: str = "") -> None:
            observer.stage_progress(stage.name, done, total, note)

        def say(text: str) -> None:
            observer.line(f"{stage.name}: {text}")

        stage.run(StageContext(staging.path, inputs, progress, staging.info, say, staging.where, staging.sent))
    artifact = store.open(stage.name, item.key)
    observer.stage_finished(stage.name, artifact.seconds, str(artifact.info.get("note", "")))
    return artifact
