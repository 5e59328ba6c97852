"""What there is to decide from: the pairs in the data now, the registry, the alerts, and what the last record knew.

Pairs are found by their contents, wherever they stand. Nothing here starts Ray or changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime

from pipeline.config import RunConfig
from pipeline.data.checks import DropLog
from pipeline.data.prepare import content_of, usable_pairs
from pipeline.data.sources import source_digest
from pipeline.data.tables import read_table
from pipeline.errors import ArtifactError, ConfigError
from pipeline.realign.accuracy import Accuracy
from pipeline.realign.policy import Batch, Facts
from pipeline.realign.records import Held, Memory
from pipeline.realign.rows import RowSets
from pipeline.records import SPLITS, PairRow
from pipeline.release.line import Line
from pipeline.storage import Storage
from pipeline.watch.alerts import read_alerts

_DAY_S = 86_400.0


@dataclass(frozen=True)
class Found:
    """The outcome of a look."""

    source: str
    """Digest of the data that were looked at."""
    pairs: Mapping[str, PairRow]
    """All of them, by content."""
    new: frozenset[str]
    """Contents that the last alignment has not seen, but for those that are held."""
    batches: tuple[frozenset[str], ...]
    """Of these, what production was not measured on: what each call found, in the order of those of ``facts``."""
    held: tuple[Held, ...]
    """Batches that stay held, some pair of which is in the data still."""
    held_rows: frozenset[str]
    facts: Facts
    memory: Memory
    """With what this look itself settles: batches that were accepted or are gone, alerts that were seen."""
    said: tuple[str, ...]
    """What a person should read of it."""

    def measured(self, right: Mapping[str, bool], judged: Accuracy | None) -> Found:
        """With production's accuracies.

        Args:
            right: of every pair that could be measured, by content, whether production prefers what was chosen.
        """
        batches = []
        for batch, rows in zip(self.facts.batches, self.batches, strict=True):
            found = [right[row] for row in rows if row in right]
            batches.append(replace(batch, measured=Accuracy(sum(found), len(found)) if found else None))
        return replace(self, facts=replace(self.facts, batches=tuple(batches), judged=judged))


def look(
    run: RunConfig,
    storage: Storage,
    line: Line,
    memory: Memory,
    sets: RowSets,
    now: datetime,
    *,
    accept: str | None = None,
    unfinished: Set[int] = frozenset(),
) -> Found:
    """Find what there is to decide from.

    Args:
        accept: a held batch, by its digest or how that begins, that a person takes for good.
        unfinished: fencing tokens of calls that were interrupted since the memory was written: what they moved is no
            news, as this call goes on with it.

    Raises:
        ConfigError: when ``accept`` names no held batch.
        PipelineError: when data, registry or records cannot be read.
    """
    source = source_digest(run.data)
    pairs = {content_of(pair): pair for pair in usable_pairs(run.data, DropLog(run.data))[0]}
    memory, said = _settle_held(memory, pairs, sets, accept)
    held_rows: frozenset[str] = frozenset().union(*(sets.read(one.digest) for one in memory.held))
    known, unknown = _known(storage, line, run.registry.alias, memory, sets, unfinished)
    alias = line.alias(run.registry.alias)
    new = frozenset(pairs) - known - held_rows
    batches = _batches(new - sets.read(memory.cleared), memory, sets)
    alerts = [one for one in read_alerts(storage, line.name) if one.id not in memory.alerts]
    ours = tuple(one.message for one in alerts if one.version == alias.version)
    if others := len(alerts) - len(ours):
        said.append(f"{others} alert(s) of the watch are on versions that are not in production")
    facts = Facts(
        production=alias.version,
        new=len(new),
        batches=tuple(Batch(sets.keep(rows), len(rows)) for rows in batches),
        alerts=ours,
        evaluated_days=_age(_evaluated(line, alias.version, alias.moved_by, memory), now),
        aligned_days=_age(memory.aligned_at or _put_there(line, alias.moved_by), now),
    )
    memory = replace(memory, alerts=(*memory.alerts, *(one.id for one in alerts)))
    return Found(source, pairs, new, batches, memory.held, held_rows, facts, memory, (*said, *unknown))


def _batches(rows: frozenset[str], memory: Memory, sets: RowSets) -> tuple[frozenset[str], ...]:
    """What each earlier call found, as far as it is there still, and what has come since."""
    earlier = [sets.read(digest) & rows for digest in memory.waiting]
    since = rows.difference(*earlier)
    return tuple(batch for batch in (*earlier, since) if batch)


def _settle_held(
    memory: Memory, pairs: Mapping[str, PairRow], sets: RowSets, accept: str | None
) -> tuple[Memory, list[str]]:
    """Batches that a person accepts are cleared; those of which nothing is in the data any more are forgotten."""
    said: list[str] = []
    accepted = [one for one in memory.held if accept is not None and one.digest.startswith(accept)]
    if accept is not None and len(accepted) != 1:
        listed = ", ".join(f"{one.digest} ({one.pairs:,} pairs)" for one in memory.held) or "none"
        raise ConfigError(f"--accept: {accept!r} names no single held batch; held are: {listed}")
    gone = [one for one in memory.held if one not in accepted and not sets.read(one.digest) & pairs.keys()]
    for one in accepted:
        said.append(f"batch {one.digest} ({one.pairs:,} pairs) was accepted by a person")
    for one in gone:
        said.append(f"batch {one.digest} ({one.pairs:,} pairs), which was held, is gone from the data")
    cleared = sets.read(memory.cleared).union(*(sets.read(one.digest) for one in accepted))
    held = tuple(one for one in memory.held if one not in accepted and one not in gone)
    return replace(memory, held=held, cleared=sets.keep(cleared)), said


def _known(
    storage: Storage, line: Line, alias: str, memory: Memory, sets: RowSets, unfinished: Set[int]
) -> tuple[frozenset[str], list[str]]:
    """Contents that the last alignment saw, and what is not known of them, in words."""
    known = sets.read(memory.known)
    pointed = line.alias(alias)
    by_others = pointed.version != memory.production
    if by_others and pointed.moved_by:
        by_others = line.trail.read(pointed.moved_by).event.fence not in unfinished
    versions = {pointed.version} if by_others else set()
    if memory == Memory():
        versions.add(line.state().versions - 1)  # the newest: an alignment that another job made
    said: list[str] = []
    for version in sorted(versions - {0}):
        rows = made_from(storage, line, version)
        if rows is None:
            said.append(f"the pairs that version {version} was made from are not kept here: they count as new")
        else:
            known |= rows
    return known, said


def made_from(storage: Storage, line: Line, version: int) -> frozenset[str] | None:
    """Contents of the pairs that a version was made from; None when its data are not in this store."""
    key = line.versions.manifest(version).provenance.get("stages", {}).get("data")
    try:
        path = storage.store(create=False).open("data", str(key)).path
    except (KeyError, ArtifactError):
        return None
    return frozenset(content_of(pair) for split in SPLITS for pair in read_table(path / f"{split}.parquet", PairRow))


def _evaluated(line: Line, production: int, moved_by: int, memory: Memory) -> str | None:
    """When production was judged last: by a call, or when it was put there."""
    return memory.evaluated_at if memory.evaluated_version == production else _put_there(line, moved_by)


def _put_there(line: Line, moved_by: int) -> str | None:
    """When a record moved production; None when it was never moved."""
    return line.trail.read(moved_by).when if moved_by else None


def _age(then: str | None, now: datetime) -> float | None:
    """Days."""
    if then is None:
        return None
    return max(0.0, (now - datetime.fromisoformat(then)).total_seconds() / _DAY_S)
