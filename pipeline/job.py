"""One run of the align job: plan, run what is missing, publish the result."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import JobRequest, resolved_yaml
from pipeline.console import Console, quiet_libraries, switch_off_bars
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from pipeline.align import AlignmentRun
    from pipeline.artifacts import Artifact, Store
    from pipeline.config import RunConfig
    from pipeline.storage import Folder, Storage

RESULTS = ("report.html", "summary.json")


Finish = Callable[["AlignmentRun", "dict[str, Artifact]", Console], None]


def align(request: JobRequest) -> int:
    """Run (or, with ``dry_run``, only describe) one alignment; returns the exit code."""

    def finish(run: AlignmentRun, result: dict[str, Artifact], console: Console) -> None:
        directory = publish(run, request, result)
        console.line(f"verdict: {result['evaluate'].info['note']}")
        if "register" in result:
            console.line(f"release: {result['register'].info['note']}")
            if run.release is not None and (moved := run.release.moved_since(result["register"])):
                console.line(f"note: {moved}")
        console.line(f"summary: {directory}/summary.json")
        console.line(f"policy:  {result['align'].files_at}/model")
        console.line(f"report:  {directory}/report.html")

    return _run(request, "align", "alignment", (), finish)


def reference(request: JobRequest) -> int:
    """Run an alignment's stages up to its reference cache and say where that is; returns the exit code."""

    def finish(run: AlignmentRun, result: dict[str, Artifact], console: Console) -> None:
        console.line(f"cache: {run.cache_place(result['reference'])}")

    return _run(request, "reference", "reference pass", ("reference",), finish)


def _run(request: JobRequest, job: str, title: str, until: Collection[str], finish: Finish) -> int:
    storage = storage_of(request)
    if request.dry_run:
        switch_off_bars()
        describe_run(request, request.run, storage, until)
        return 0
    with opened(request, storage, job, title) as (store, console):
        from pipeline.align import AlignmentRun

        run = AlignmentRun(recipe_name(request), request.run, storage, until)
        result = execute_run(run, store, console)
        run.remove_checkpoints()
        finish(run, result, console)
    return 0


def storage_of(request: JobRequest) -> Storage:
    """Where a job works."""
    from pipeline.storage import open_storage

    return open_storage(request.storage)


@contextlib.contextmanager
def opened(request: JobRequest, storage: Storage, job: str, title: str) -> Iterator[tuple[Store, Console]]:
    """The store and the console of a job that runs, with what libraries say sent to its log.

    Raises:
        ArtifactError: for a storage that cannot be written.
    """
    from pipeline.storage import write_problem

    if not storage.is_local and (problem := write_problem(storage.root)):
        raise ArtifactError(problem)
    store, logs = storage.store(), storage.folder("logs")
    log_path = logs.path / f"{job}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    quiet_libraries(log_path)
    with contextlib.ExitStack() as stack:
        if logs.url is not None:
            stack.callback(_send_log, logs, log_path)
        console = stack.enter_context(Console(log_path))
        console.line(f"Ra-DPO {title}: recipe {recipe_name(request)}, storage {storage.root}")
        yield store, console


def _send_log(logs: Folder, path: Path) -> None:
    with contextlib.suppress(ArtifactError, FileNotFoundError):  # what ends the job may be the storage itself
        logs.send(path.name)


def execute_run(run: AlignmentRun, store: Store, console: Console) -> dict[str, Artifact]:
    """Run what is missing of a run; Ray is started, or joined, only for what needs it."""
    from pipeline.graph import execute

    have = begin_run(run, store, console)
    if all(item.stage.local for name, item in run.planned.items() if name not in have):
        return execute(run.planned, store, console, have)
    with joined(run, console):
        return execute(run.planned, store, console, have)


def begin_run(run: AlignmentRun, store: Store, console: Console) -> dict[str, Artifact]:
    """What of a run can be done without Ray: find what is there, refuse what cannot fit, prepare the data."""
    from pipeline.graph import execute, reuse
    from pipeline.places import Place
    from pipeline.reference.location import write_problem

    have = reuse(run.planned, store, console)
    run.reused = tuple(have)
    if len(have) < len(run.planned):
        _require_room(run, store, have)
    caches = Place(run.run.reference.root) if run.run.reference.root is not None else None
    if caches is not None and "reference" not in have and "reference" in run.planned:
        caches.names()  # an unreachable place is refused before anything is spent
        if problem := write_problem(caches):
            console.line(f"note: {problem}; only a finished cache that is there already will do")
    if "data" in run.planned and "data" not in have:
        # Faults of the data are the commonest ones: find them before a cluster is started or joined.
        have |= execute({"data": run.planned["data"]}, store, console, {})
    return have


@contextlib.contextmanager
def joined(run: AlignmentRun, console: Console) -> Iterator[None]:
    """Ray, for what is left of a run."""
    from pipeline.cluster import check_visible, connected
    from pipeline.models.load import import_transformers
    from pipeline.places import Place

    caches = Place(run.run.reference.root) if run.run.reference.root is not None else None
    # A training under way may have lost nodes, and goes on with fewer workers; a cluster that grows is asked for all.
    fixed = not run.run.cluster.autoscaling
    least = run.run.cluster.min_workers if fixed and run.under_way() else None
    import_transformers()
    with connected(run.run.cluster, run.storage, run.run.reference.threads, least) as described:
        console.line(described)
        if caches is not None and caches.is_local:
            check_visible(Path(caches.root), "--reference.root")
        yield


def _require_room(run: AlignmentRun, store: Store, have: Mapping[str, Artifact]) -> None:
    """Refuse a run that cannot fit. Without committed tokens only its models are judged here, and its reference at
    the end of the stage ``tokens``, which counts."""
    from pipeline.fitting import require_room
    from pipeline.survey import counts_of, model_directory

    counts = counts_of(have["tokens"].path) if "tokens" in have else None
    model = model_directory(run.run.model, run.planned, store)
    foreseen = run.foreseen_reference(have)
    there = foreseen.there_bytes if foreseen else 0
    require_room(run.run, run.planned, store, run.storage, counts, model, reference_there_bytes=there)


def recipe_name(request: JobRequest) -> str:
    """The recipe's name, for one given as a path too."""
    return Path(request.recipe).stem


def publish(run: AlignmentRun, request: JobRequest, result: dict[str, Artifact]) -> str:
    """Where a person can find it: the report with what it was made from, named by recipe and key."""
    from pipeline.refusals import explained

    report, published = result["report"], run.published
    directory = published.path
    with explained(f"{directory} cannot be written"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=directory.parent) as temporary:
            fresh = Path(temporary) / directory.name
            fresh.mkdir()
            for name in RESULTS:
                shutil.copyfile(report.path / name, fresh / name)
            shutil.copyfile(result["align"].path / "metrics.jsonl", fresh / "metrics.jsonl")
            dropped = [(result[stage].path / "dropped.jsonl").read_text("utf-8") for stage in ("data", "tokens")]
            (fresh / "dropped.jsonl").write_text("".join(dropped), encoding="utf-8")
            (fresh / "run.yaml").write_text(resolved_yaml(request.run), encoding="utf-8")
            shutil.rmtree(directory, ignore_errors=True)
            fresh.rename(directory)
    published.send()
    return published.where


def describe_run(request: JobRequest, described: RunConfig, storage: Storage, until: Collection[str]) -> None:
    """Print a run up to some stages, and what it costs, without running anything."""
    from pipeline.align import AlignmentRun
    from pipeline.describe import describe

    run, store = AlignmentRun(recipe_name(request), described, storage, until), storage.store(create=False)
    have: dict[str, Artifact] = {}
    for name, item in run.planned.items():
        if name in ("base", "tokens", "sft"):
            with contextlib.suppress(KeyError, ArtifactError):
                have[name] = store.open(name, item.key)
    describe(described, run.planned, storage, foreseen=run.foreseen_reference(have))
