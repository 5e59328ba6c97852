"""What happens under the lease, from the beginning of a record to its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from pipeline.artifacts import Store
from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.console import Console, duration
from pipeline.data.checks import DropLog
from pipeline.data.prepare import content_of, usable_pairs
from pipeline.data.sources import left_out
from pipeline.errors import ConflictError, PipelineError
from pipeline.job import execute_run, publish, recipe_name
from pipeline.lease import Lease
from pipeline.realign.job import DIRECTORY, FoundLine, find_line
from pipeline.realign.look import Found, look
from pipeline.realign.policy import Decision, decide, wants_measure
from pipeline.realign.records import FAILED, INTERRUPTED, Entry, Held, Memory, Records
from pipeline.realign.rows import EMPTY, RowSets
from pipeline.release.line import Line, myself
from pipeline.release.registry import open_registry, root_of
from pipeline.releasing import COPIES, PRODUCTION_ALONE
from pipeline.stages import read_json
from pipeline.storage import Storage

NOTHING = "nothing to do"


@dataclass
class Done:
    """What a call did, as it stands in its record."""

    did: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Sentences for a person, the most important first."""
    facts: Mapping[str, Any] | None = None
    decision: Mapping[str, Any] | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    """Keys by stage."""
    release: Mapping[str, Any] | None = None
    audit: list[int] = field(default_factory=list)
    """Numbers of the records of the audit trail that this call wrote, or found written by the call it went on with."""


class Call:
    """One call of the schedule."""

    def __init__(
        self, request: JobRequest, storage: Storage, store: Store, console: Console, now: datetime, found: FoundLine
    ) -> None:
        self._request, self._storage, self._store, self._console = request, storage, store, console
        self._now, self._found = now, found
        place = storage.place(DIRECTORY, found.name)
        self._records, self._sets = Records(place.below("records")), RowSets(place.below("rows"))
        self._lease = Lease(place.below("lease"))
        self._began = time.monotonic()

    def run(self) -> int:
        """Take the lease and do what is to be done; returns the exit code."""
        if not self._lease.acquire_unless_alive():
            number = self._records.begin("skipped", self._about())
            self._console.line(f"record {number}: skipped, another call is at it (line {self._found.name})")
            return 0
        try:
            # Whoever held the lease meanwhile may have made the line.
            found = find_line(self._request, self._storage)
            if found.name != self._found.name:
                raise ConflictError(f"another call has begun line {found.name} meanwhile: run the same command again")
            self._found = found
            self._under_lease()
        finally:
            self._lease.release()
        return 0

    def _about(self) -> dict[str, Any]:
        run = self._request.run
        return {
            "now": self._now.isoformat(timespec="seconds"),
            "who": myself(),
            "line": self._found.name,
            "recipe": recipe_name(self._request),
            "policy": run.realign.model_dump(mode="json"),
        }

    def _under_lease(self) -> None:
        interrupted = self._complete_interrupted()
        number = self._records.begin("begun", self._about() | {"fence": self._lease.number})
        done = Done()
        try:
            if self._found.line is not None:
                self._found.line.fence(self._lease.number, why=f"re-alignment {number} begins")
            memory = self._first(done) if self._found.first else self._again(done, interrupted)
        except BaseException as error:
            with contextlib.suppress(PipelineError):  # what went wrong may be the storage itself
                self._end(number, FAILED, done, None, error)
            raise
        if not self._end(number, ", ".join(done.did) or NOTHING, done, memory):
            raise ConflictError(
                f"the lease of line {self._found.name} was taken over while this call did not move, and its record "
                f"{number} was closed: what it did after that counts for nothing; run the same command again"
            )

    def _complete_interrupted(self) -> set[int]:
        """Close the records of calls that were killed; returns the tokens of those since the last that came to its
        end."""
        for entry in self._records.open_entries():
            audit = self._audit_of(entry)
            self._records.end(entry.number, {"outcome": INTERRUPTED, "audit": audit, "memory": None})
            self._console.line(
                f"record {entry.number} was begun at {entry.first['now']} and has no end: it was interrupted"
                + (f", after it had written audit record(s) {', '.join(map(str, audit))}" if audit else "")
            )
        return {one.first["fence"] for one in self._records.unremembered() if one.first["state"] == "begun"}

    def _audit_of(self, entry: Entry) -> list[int]:
        """Audit records that a call wrote: those with its token."""
        return [] if self._found.line is None else decisions_under(self._found.line, entry.first["fence"])

    def _end(
        self, number: int, outcome: str, done: Done, memory: Memory | None, error: BaseException | None = None
    ) -> bool:
        """Write the end of the record; what an overtaken call has to say goes beside it."""
        content = {
            "outcome": outcome,
            **asdict(done),
            "seconds": round(time.monotonic() - self._began, 1),
            "memory": None if memory is None else memory.as_dict(),
            "error": None if error is None else f"{type(error).__name__}: {error}",
        }
        written = self._records.end(number, content)
        if not written:
            self._records.late(number, content)
        if error is None:
            self._console.line(f"record {number}: {outcome}  {duration(content['seconds'])}")
        return written

    # -- the first alignment -------------------------------------------------------------------------------

    def _first(self, done: Done) -> Memory:
        self._say(done, f"line {self._found.name} has no alignment yet: the first one is made")
        rows = frozenset(map(content_of, usable_pairs(self._request.run.data, DropLog(self._request.run.data))[0]))
        self._align(self._request.run, done, "first alignment")
        line = self._line()
        production = line.alias(self._request.run.registry.alias).version
        at = self._now.isoformat(timespec="seconds")
        judged = production or None
        return Memory(
            production=production,
            known=self._sets.keep(rows),
            evaluated_version=judged,
            evaluated_at=at if judged else None,
            aligned_at=at,
        )

    # -- every other call ----------------------------------------------------------------------------------

    def _again(self, done: Done, unfinished: set[int]) -> Memory:
        run, line = self._request.run, self._line()
        memory = self._records.memory()
        accept = self._request.arguments["accept"]
        found = look(run, self._storage, line, memory, self._sets, self._now, accept=accept, unfinished=unfinished)
        if wants_measure(found.facts, run.realign):
            found = self._measured(found, line)
            done.did.append(f"measured {found.facts.unmeasured:,} new pairs")
        decision = decide(found.facts, run.realign)
        done.facts, done.decision = asdict(found.facts), asdict(decision)
        for sentence in (*found.said, *decision.notes):
            self._say(done, sentence)
        memory = self._hold(found, decision, done)
        if decision.evaluate:
            self._evaluate(memory, decision.evaluate, done)
        if decision.realign:
            self._realign(memory, decision.realign, done)
        for one in memory.held:
            self._console.line(
                f"!! HELD: {one.pairs:,} pairs (batch {one.digest}, since {one.since[:10]}) wait for a person and are "
                f"not trained on. {one.why} Repair the data, or say --accept {one.digest[:8]}"
            )
        return self._remembered(memory, found, decision)

    def _measured(self, found: Found, line: Line) -> Found:
        from pipeline.realign.measure import judged_by, measure

        copies = self._storage.here / COPIES
        reference, policy = (line.fetch(str(version), copies) for version in (0, found.facts.production))
        rows = [found.pairs[content] for content in sorted(frozenset[str]().union(*found.batches))]
        self._console.line(f"{len(rows):,} new pairs: what version {policy.version} in production makes of them")
        right = measure(self._request.run, rows, reference, policy, self._storage, self._console)
        return found.measured(right, judged_by(policy))

    def _hold(self, found: Found, decision: Decision, done: Done) -> Memory:
        """The memory with each batch held, cleared when production was measured on it, or waiting for that."""
        held, waiting = list(found.memory.held), []
        cleared = self._sets.read(found.memory.cleared)
        since = self._now.isoformat(timespec="seconds")
        for batch, rows in zip(found.facts.batches, found.batches, strict=True):
            if batch.digest in decision.hold:
                held.append(Held(batch.digest, batch.pairs, since, decision.hold[batch.digest]))
                done.did.append(f"held {batch.pairs:,} pairs")
                done.said.insert(0, decision.hold[batch.digest])
            elif batch.measured is None:
                waiting.append(batch.digest)
            else:
                cleared |= rows
        return replace(found.memory, held=tuple(held), waiting=tuple(waiting), cleared=self._sets.keep(cleared))

    def _evaluate(self, memory: Memory, reasons: Sequence[str], done: Done) -> None:
        """Production alone, by the run's data; back to the reference when it demonstrably breaks a limit."""
        from pipeline.align import AlignmentRun

        self._require_lease()
        self._reasons("production is evaluated", reasons, done)
        run = AlignmentRun(
            recipe_name(self._request),
            self._on_line(self._request.run, memory),
            self._storage,
            (PRODUCTION_ALONE,),
            fence=self._lease.number,
        )
        assert run.release is not None
        result = execute_run(run, self._store, self._console)
        record, there = run.release.act_on_production(result[PRODUCTION_ALONE])
        done.audit.append(record.number)
        done.artifacts |= {name: item.key for name, item in run.planned.items()}
        back = any(move.alias == self._request.run.registry.alias for move in record.event.moves)
        done.did.append("rolled back to the reference" if back else "evaluated")
        again = ", as before: nothing that it depends on has changed" if there else ""
        self._say(done, f"{record.why} (audit record {record.number}{again})")

    def _realign(self, memory: Memory, reasons: Sequence[str], done: Done) -> None:
        self._reasons("a policy is aligned anew", reasons, done)
        run = self._on_line(self._request.run, memory)
        if run.realign.pilot is not None:
            from pipeline.realign.pilot import chosen_anew

            run, said = chosen_anew(self._request, run)
            self._say(done, said)
        self._align(run, done, "re-aligned")

    def _align(self, run: RunConfig, done: Done, what: str) -> None:
        """The graph of jobs/align.py, to its report."""
        from pipeline.align import AlignmentRun

        self._require_lease()
        alignment = AlignmentRun(recipe_name(self._request), run, self._storage, fence=self._lease.number)
        result = execute_run(alignment, self._store, self._console)
        alignment.remove_checkpoints()
        directory = publish(alignment, replace(self._request, run=run), result)
        release = read_json(result["register"].path / "release.json")
        done.release = {name: release[name] for name in ("version", "outcome", "before", "after", "record", "when")}
        done.audit.append(release["record"])
        done.artifacts |= {name: item.key for name, item in alignment.planned.items()}
        done.did.append(what)
        self._say(done, f"{result['register'].info['note']} (audit record {release['record']})")
        self._console.line(f"report: {directory}/report.html")

    def _on_line(self, run: RunConfig, memory: Memory) -> RunConfig:
        """The run with the line's reference for its model, and without the pairs that are held."""
        registry = run.registry.model_copy(update={"line": self._found.name})
        out = left_out(run.data).union(*(self._sets.read(one.digest) for one in memory.held))
        path = self._sets.where(self._sets.keep(out)) if out else None
        data = run.data.model_copy(update={"leave_out": path})
        return run.model_copy(update={"registry": registry, "data": data})

    def _remembered(self, memory: Memory, found: Found, decision: Decision) -> Memory:
        production = self._line().alias(self._request.run.registry.alias).version
        at = self._now.isoformat(timespec="seconds")
        memory = replace(memory, production=production)
        if (decision.evaluate or decision.realign) and production:
            memory = replace(memory, evaluated_version=production, evaluated_at=at)
        if decision.realign:
            held = frozenset[str]().union(*(self._sets.read(one.digest) for one in memory.held))
            known = self._sets.keep(found.pairs.keys() - held)
            memory = replace(memory, known=known, cleared=EMPTY, waiting=(), aligned_at=at)
        elif memory.known == EMPTY:
            # What another job had trained on is known from now on by its contents.
            memory = replace(memory, known=self._sets.keep(found.pairs.keys() - found.new - found.held_rows))
        return memory

    # -- small things --------------------------------------------------------------------------------------

    def _line(self) -> Line:
        return open_registry(root_of(self._storage, self._request.run.registry.root)).line(self._found.name)

    def _require_lease(self) -> None:
        if self._lease.lost:
            raise ConflictError(
                f"the lease of line {self._found.name} was taken over by another call, while this one did not move: "
                "nothing was changed"
            )

    def _reasons(self, what: str, reasons: Sequence[str], done: Done) -> None:
        self._say(done, f"{what}: {'; '.join(reasons)}")

    def _say(self, done: Done, sentence: str) -> None:
        done.said.append(sentence)
        self._console.line(sentence)


def decisions_under(line: Line, fence: int) -> list[int]:
    """Numbers of the records of the audit trail in which something was decided under a token."""
    found: list[int] = []
    for number in reversed(line.trail.numbers()):
        event = line.trail.read(number).event
        if event.kind == "decided" and event.fence == fence:
            found.insert(0, number)
        if event.kind == "fenced" and event.fence is not None and event.fence <= fence:
            break
    return found
