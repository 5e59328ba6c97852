"""The reference stage: what is missing of a cache, computed by Ray actors; a cache is never computed twice.

::

    open the cache ── whole ─────────────────────────────────────────────► done
        │ not there, unfinished or damaged
        ▼
    its lock ──► look again ──► remove damaged files ──► actors: a shard each ──► manifest ──► done
                  └─ whole: another job was faster ──────────────────────────────────────────► done

Which actor computes a shard never matters: a shard's content is a pure function of its rows and the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actors import Pool, map_over_actors
from pipeline.calls import Call
from pipeline.config import RunConfig
from pipeline.places import Place
from pipeline.progress import Report
from pipeline.reference.actor import PassSpec, ReferenceActor
from pipeline.reference.cache import HEAD, Piece, ReferenceCache, StoredFile, pieces
from pipeline.reference.key import SPLITS, cache_key, cache_parts
from pipeline.reference.location import listed
from pipeline.reference.manifest import contents


@dataclass(frozen=True)
class PassResult:
    """A finished cache and what this job did for it."""

    place: str
    """Where it is: a directory or a URL."""
    manifest: dict[str, Any]
    computed: int
    """Files that this job computed; the others were there."""


def run_reference(
    run: RunConfig,
    model_dir: Path,
    tokens_dir: Path,
    root: Place,
    names: dict[str, str],
    report: Report,
    say: Callable[[str], None],
) -> PassResult:
    """Bring the run's cache about and return it, verified.

    Args:
        root: the directory of all caches.
        names: what model and data are called, for people; no part of the key.
        report: progress in pairs.
        say: a line for the console.
    """
    import pyarrow.parquet as pq

    parts = cache_parts(run, model_dir, tokens_dir)
    key = cache_key(parts)
    cache = ReferenceCache(root.below(key))
    found = cache.verify()
    if found.manifest is not None and found.whole:
        return PassResult(cache.place.root, found.manifest, 0)
    rows: dict[str, int] = {split: pq.read_metadata(tokens_dir / f"{split}.parquet").num_rows for split in SPLITS}
    spec = PassSpec(run.model_dump(mode="json"), str(model_dir), str(tokens_dir), cache.place.root, key)
    with cache.place.lock(lambda: say("another job computes this reference; waiting for it")):
        found = cache.verify()
        if found.manifest is not None and found.whole:
            return PassResult(cache.place.root, found.manifest, 0)
        if found.damaged:
            say(f"{cache.place.root}: {listed(found.damaged)}; computing what is lost again")
            cache.remove(found.damaged)
        wanted = pieces(rows, run.reference.rows_per_shard, run.reference.tier == "hidden")
        missing = list(found.missing(wanted))
        if len(missing) < len(wanted):
            say(f"{len(wanted) - len(missing)} of {len(wanted)} files are there, {len(missing)} to compute")
        description = {"key": key, "made_from": parts, "names": names, "rows": rows}
        cache.start(description)
        computed = _compute(run, spec, missing, rows, report, say)
        files = {piece: found.files.get(piece) or computed[piece] for piece in wanted}
        manifest = cache.finish(description | contents(cache, key, files, run.reference.rows_per_shard))
    return PassResult(cache.place.root, manifest, len(missing))


def _compute(
    run: RunConfig,
    spec: PassSpec,
    missing: list[Piece],
    rows: dict[str, int],
    report: Report,
    say: Callable[[str], None],
) -> dict[Piece, StoredFile]:
    options, total = run.reference, sum(rows.values())
    per_shard = options.rows_per_shard

    def pairs_in(piece: Piece) -> int:
        return 0 if piece.split == HEAD else min(per_shard, rows[piece.split] - piece.index * per_shard)

    done = total - sum(pairs_in(piece) for piece in missing)
    files: dict[Piece, StoredFile] = {}

    def on_result(index: int, stored: StoredFile) -> None:
        nonlocal done
        files[missing[index]] = stored
        done += pairs_in(missing[index])
        report(done, total, "pairs")

    report(done, total, "pairs")
    pool = Pool(cpus=options.threads, gpus=run.cluster.gpus_per_actor, max_actors=run.cluster.max_actors)
    calls = (Call("compute", (piece,), what=str(piece)) for piece in missing)
    map_over_actors(
        ReferenceActor,
        (spec,),
        pool,
        calls,
        on_result,
        on_death=lambda what: say(f"an actor died while it computed {what}; another one computes it again"),
    )
    return files
