"""One comparison: find both sides, compute what is missing, and leave a page with its figures."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import JobRequest
from pipeline.console import Console, switch_off_bars
from pipeline.job import opened, storage_of

if TYPE_CHECKING:
    from pipeline.compare.subject import Subject
    from pipeline.config import RunConfig
    from pipeline.storage import Storage

_SLUG_LENGTH = 24


def compare(request: JobRequest) -> int:
    """Compare two sides (with ``dry_run``: only say what, and what is there); returns the exit code.

    Raises:
        PipelineError: when a side cannot be used, both are the same, or they have nothing in common.
    """
    storage = storage_of(request)
    if request.dry_run:
        return _describe(request, storage)
    with opened(request, storage, "compare", "comparison") as (store, console):
        from pipeline.compare.compute import Computation, drift_of, judged
        from pipeline.compare.figures import compare as compare_sides
        from pipeline.compare.subject import NAMES
        from pipeline.evaluation.scorers import check_scorers

        scorers = check_scorers(request.run.evaluation)
        run, subject = _found(request, storage, console)
        with Computation(run, subject, store, storage, console) as computation:
            samples = computation.samples()
            drifts, why_no_drift = computation.drifts(samples)
        cut = {name: int(artifact.info["cut"]) for name, artifact in samples.items()}
        for name, count in cut.items():
            if count:
                limit = run.data.max_prompt_tokens
                console.line(f"{name}: {count:,} prompts keep their last {limit} tokens (data.max_prompt_tokens)")
        a, b = (judged(name, subject, samples, scorers) for name in NAMES)
        drift = drift_of(subject, drifts) if drifts else None
        content = compare_sides(a, b, subject.on, scorers, run.evaluation, drift)
        keys = {f"sample {name}": one.key for name, one in samples.items()}
        keys |= {f"drift {name}": one.key for name, one in drifts.items()}
        _publish({**_about(run, subject, keys, cut), "why_no_drift": why_no_drift, **content}, run, storage, console)
    return 0


def _found(request: JobRequest, storage: Storage, console: Console) -> tuple[RunConfig, Subject]:
    """The run with its numbers' type decided, and what is compared, which is told."""
    from pipeline.compare.sides import Versions
    from pipeline.compare.subject import find_subject
    from pipeline.keys import with_dtype
    from pipeline.release.registry import root_of

    run, given = with_dtype(request.run), request.arguments
    versions = Versions(root_of(storage, run.registry.root), given["line"], storage.here / "versions")
    subject = find_subject((str(given["a"]), str(given["b"])), given["prompts"], versions, run.evaluation)
    for line in subject.lines():
        console.line(line)
    return run, subject


def _describe(request: JobRequest, storage: Storage) -> int:
    from pipeline.compare.compute import Computation

    switch_off_bars()
    store = storage.store(create=False)
    with Console() as console:
        run, subject = _found(request, storage, console)
        for name, item in Computation(run, subject, store, storage, console).sampling.items():
            there = store.exists(item.stage.name, item.key)
            console.line(f"sample {name}: {'there' if there else 'to do'}")
    return 0


def _about(run: RunConfig, subject: Subject, keys: Mapping[str, str], cut: Mapping[str, int]) -> dict[str, Any]:
    """What the figures are of: sides by their contents, and everything that they were computed with."""
    from pipeline.keys import library_versions

    return {
        **{
            name.lower(): {"label": side.label, "kind": type(side).__name__.lower(), "digest": side.digest}
            for name, side in subject.sides.items()
        },
        "prompts_cut": dict(cut),
        "max_prompt_tokens": run.data.max_prompt_tokens,
        "options": run.evaluation.model_dump(mode="json", exclude={"split", "cost_per_incident", "seeds"}),
        "artifacts": dict(keys),
        "libraries": library_versions(("torch", "transformers", "ray")),
    }


def _publish(content: Mapping[str, Any], run: RunConfig, storage: Storage, console: Console) -> None:
    """Leave page and figures in a directory that a person can find, both whole, and say where."""
    from pipeline.digests import digest_json
    from pipeline.refusals import explained
    from pipeline.report.compare import headline, render_compare
    from pipeline.report.summary import strict

    content = strict({"headline": headline(content), **content})
    key = digest_json({"content": content, "language": run.report.language})[:8]
    name = f"compare-{_slug(content['a']['label'])}-{_slug(content['b']['label'])}-{key}"
    folder = storage.folder("reports", name)
    directory = folder.path
    page = render_compare(content, run.report.language)
    with explained(f"{directory} cannot be written"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=directory.parent) as temporary:
            fresh = Path(temporary) / name
            fresh.mkdir()
            (fresh / "compare.html").write_text(page, encoding="utf-8")
            (fresh / "compare.json").write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
            shutil.rmtree(directory, ignore_errors=True)
            fresh.rename(directory)
    folder.send()
    console.line(f"verdict: {content['headline']}")
    console.line(f"figures: {folder.where}/compare.json")
    console.line(f"page:    {folder.where}/compare.html")


def _slug(label: str) -> str:
    """A side's label as part of a file name: a version's number, or the last part of a path."""
    last = Path(label.partition(" (")[0] if label.startswith("version ") else label).stem
    return re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower()[:_SLUG_LENGTH].strip("-") or "side"
