"""The reference stage: what is missing of a cache, computed by Ray actors; a row is never computed twice.

::

    open the cache ── whole ─────────────────────────────────────────────────────────────────────► done
        │ not there, unfinished or damaged
        ▼
    its lock ──► look again ──► remove damaged files ──► plan ──► take over ──► actors ──► manifest ──► done
                  └─ whole: another job was faster ───────────────────────────────────────────────────► done

The plan says which file holds which rows, and is made once: rows that other caches hold are taken over from them, the
others are computed, a file by an actor (`pipeline.reference.plan`). Which actor computes a file never matters: its
content is a pure function of its rows, their order and the pass. A row's last digits depend on the rows it shared a
batch with, so those of a row that was taken over are the ones it got in its first cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.actors import Pool, map_over_actors
from pipeline.calls import Call
from pipeline.config import RunConfig
from pipeline.places import Place
from pipeline.progress import Report
from pipeline.reference.actor import PassSpec, ReferenceActor, Written
from pipeline.reference.cache import ReferenceCache, StoredFile
from pipeline.reference.donors import plan_of
from pipeline.reference.key import cache_key, cache_parts, pass_key, row_contents
from pipeline.reference.location import listed
from pipeline.reference.manifest import contents
from pipeline.reference.plan import Part, Piece, Plan
from pipeline.reference.takeover import TakeOver
from pipeline.storage import local_copy


@dataclass(frozen=True)
class PassResult:
    """A finished cache and what this job did for it."""

    place: str
    """Where it is: a directory or a URL."""
    manifest: dict[str, Any]
    computed: int = 0
    """Files that this job's actors computed."""
    computed_rows: int = 0
    """Pairs that went through the model for it, counted by the actors."""
    taken_rows: int = 0
    """Pairs that this job took over from other caches."""


def run_reference(
    run: RunConfig,
    model_at: str,
    tokens_at: str,
    root: Place,
    names: dict[str, str],
    report: Report,
    say: Callable[[str], None],
) -> PassResult:
    """Bring the run's cache about and return it, verified.

    Args:
        model_at: where the model is, as ``tokens_at`` (`pipeline.storage.local_copy`).
        root: the directory of all caches.
        names: what model and data are called, for people; no part of the key.
        report: progress in pairs.
        say: a line for the console.
    """
    model_dir, tokens_dir = local_copy(model_at), local_copy(tokens_at)
    made_from = cache_parts(run, model_dir, tokens_dir)
    key, pass_ = cache_key(made_from), pass_key(made_from)
    cache = ReferenceCache(root.below(key))
    found = cache.verify()
    if found.manifest is not None and found.whole:
        return PassResult(cache.place.root, found.manifest)
    spec = PassSpec(run.model_dump(mode="json"), model_at, tokens_at, cache.place.root, pass_)
    with cache.place.lock(lambda: say("another job computes this reference; waiting for it")):
        found = cache.verify()
        if found.manifest is not None and found.whole:
            return PassResult(cache.place.root, found.manifest)
        if found.damaged:
            say(f"{cache.place.root}: {listed(found.damaged)}; what is lost is made again")
            cache.remove(found.damaged)
        rows = row_contents(tokens_dir)
        counts = {split: len(of_split) for split, of_split in rows.items()}
        description = {"key": key, "made_from": made_from, "names": names, "rows": counts}
        cache.start(description)
        here = {piece: stored.name for piece, stored in found.files.items()}
        plan = plan_of(cache, root, made_from, here, rows, say)
        cache.settle(plan)
        progress = _Progress(plan, found.missing(plan), report)
        if len(progress.lacking) < len(plan.parts):
            say(f"{len(plan.parts) - len(progress.lacking)} of {len(plan.parts)} files are there")
        taken, plan = _take_over(TakeOver(cache, root, tokens_dir, pass_), plan, progress, say)
        missing = [part for part in progress.lacking if part.piece not in taken]
        written = _compute(run, spec, missing, progress, say)
        files = found.files | taken | {piece: one.file for piece, one in written.items()}
        manifest = cache.finish(description | contents(cache, pass_, plan, files, rows))
    return PassResult(
        cache.place.root,
        manifest,
        len(missing),
        sum(one.computed_rows for one in written.values()),
        sum(part.pairs for part in progress.lacking if part.piece in taken),
    )


class _Progress:
    """Pairs that are done, told as they come."""

    def __init__(self, plan: Plan, lacking: list[Part], report: Report) -> None:
        self.lacking = lacking
        self._total = sum(part.pairs for part in plan.parts)
        self._done = self._total - sum(part.pairs for part in lacking)
        self._report = report
        self._report(self._done, self._total, "pairs")

    def done(self, part: Part) -> None:
        self._done += part.pairs
        self._report(self._done, self._total, "pairs")


def _take_over(
    hands: TakeOver, plan: Plan, progress: _Progress, say: Callable[[str], None]
) -> tuple[dict[Piece, StoredFile], Plan]:
    """Take over what the plan says; what cannot be had, the plan says no more."""
    parts = [part for part in progress.lacking if part.sources]
    if not parts:
        return {}, plan
    taken = hands.parts(parts, progress.done)
    lost = {part.piece: part for part in parts if part.piece not in taken}
    donors = {source.cache for part in parts for source in part.sources if part.piece in taken}
    pairs = sum(part.pairs for part in parts if part.piece in taken)
    say(f"{pairs:,} pairs are taken over from {len(donors)} other cache(s) of {hands.root.root}")
    if lost:
        pairs = sum(part.pairs for part in lost.values())
        names = sorted({source.file for part in lost.values() for source in part.sources})
        say(f"{pairs:,} pairs cannot be taken over, and are computed: {', '.join(names[:3])} gone or damaged")
        plan = plan.computing(lost)
        hands.cache.settle(plan)
    return taken, plan


def _compute(
    run: RunConfig, spec: PassSpec, missing: list[Part], progress: _Progress, say: Callable[[str], None]
) -> dict[Piece, Written]:
    files: dict[Piece, Written] = {}
    if not missing:
        return files

    def on_result(index: int, written: Written) -> None:
        files[missing[index].piece] = written
        progress.done(missing[index])

    options = run.reference
    pool = Pool(cpus=options.threads, gpus=run.cluster.gpus_per_actor, max_actors=run.cluster.max_actors)
    calls = (Call("compute", (part,), what=str(part.piece)) for part in missing)
    map_over_actors(
        ReferenceActor,
        (spec,),
        pool,
        calls,
        on_result,
        on_death=lambda what: say(f"an actor died while it computed {what}; another one computes it again"),
    )
    return files
