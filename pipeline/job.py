"""One run of the align job: plan, run what is missing, publish the result."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import JobRequest, resolved_yaml
from pipeline.console import Console, quiet_libraries
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.align import AlignmentRun
    from pipeline.artifacts import Artifact, Store

RESULTS = ("report.html", "summary.json")


def align(request: JobRequest) -> int:
    """Run (or, with ``dry_run``, only describe) one alignment; returns the exit code."""
    from pipeline.cluster import default_storage

    root = request.storage or default_storage()
    if "://" in root:
        raise ConfigError(f"--storage: {root!r} is a URL; give a directory that every node of the cluster sees")
    storage = Path(root).expanduser().resolve()
    if request.dry_run:
        return _describe(request, storage)

    from pipeline.artifacts import Store

    store = Store(str(storage))
    log_path = storage / "logs" / f"align-{datetime.now():%Y%m%d-%H%M%S}.log"
    quiet_libraries(log_path)
    with Console(log_path) as console:
        console.line(f"Ra-DPO alignment: recipe {_name(request)}, storage {storage}")
        from pipeline.align import AlignmentRun

        run = AlignmentRun(_name(request), request.run, storage)
        result = _execute(run, store, console)
        directory = _publish(run, request, result)
        console.line(f"verdict: {result['evaluate'].info['note']}")
        console.line(f"summary: {directory / 'summary.json'}")
        console.line(f"policy:  {result['align'].path / 'model'}")
        console.line(f"report:  {directory / 'report.html'}")
    return 0


def _execute(run: AlignmentRun, store: Store, console: Console) -> dict[str, Artifact]:
    from pipeline.graph import execute, reuse

    have = reuse(run.planned, store, console)
    run.reused = tuple(have)
    if "data" not in have:
        # Faults of the data are the commonest ones: find them before a cluster is started or joined.
        have |= execute({"data": run.planned["data"]}, store, console, {})
    if len(have) == len(run.planned):
        return have
    from pipeline.cluster import connected

    with connected(run.run.cluster, run.storage) as described:
        console.line(described)
        return execute(run.planned, store, console, have)


def _name(request: JobRequest) -> str:
    """The recipe's name, for one given as a path too."""
    return Path(request.recipe).stem


def _publish(run: AlignmentRun, request: JobRequest, result: dict[str, Artifact]) -> Path:
    """A directory a person can find: the report with what it was made from, named by recipe and key."""
    from pipeline.artifacts import explained

    report = result["report"]
    directory = run.storage / "reports" / f"{run.recipe}-{report.key[:8]}"
    with explained(f"{directory} cannot be written"):
        directory.parent.mkdir(exist_ok=True)
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
    return directory


def _describe(request: JobRequest, storage: Path) -> int:
    from pipeline.align import AlignmentRun
    from pipeline.describe import describe

    describe(request.run, AlignmentRun(_name(request), request.run, storage).planned, storage)
    return 0
