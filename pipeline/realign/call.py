"""What happens under the lease, from the beginning of a record to its end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from pipeline.artifacts import Store
from pipeline.cli import JobRequest
from pipeline.console import Console, duration
from pipeline.data.checks import DropLog
from pipeline.data.prepare import content_of, usable_pairs
from pipeline.errors import ConfigError, ConflictError, PipelineError
from pipeline.job import recipe_name
from pipeline.lease import Lease
from pipeline.realign.acts import Acts, Done
from pipeline.realign.job import DIRECTORY, FoundLine, find_line, model_of
from pipeline.realign.look import Found, look, made_from
from pipeline.realign.policy import Decision, decide, wants_measure
from pipeline.realign.records import FAILED, INTERRUPTED, Entry, Held, Memory, Records
from pipeline.realign.rows import EMPTY, RowSets
from pipeline.release.line import Line, myself
from pipeline.storage import Storage

NOTHING = "nothing to do"


class Call:
    """One call of the schedule."""

    def __init__(
        self, request: JobRequest, storage: Storage, store: Store, console: Console, now: datetime, found: FoundLine
    ) -> None:
        self._request, self._storage, self._store, self._console = request, storage, store, console
        self._now, self._found = now, found
        place = storage.place(DIRECTORY, found.name)
        self._records, self._sets = Records(place.below("records")), RowSets(place.below("rows"))
        # Above all tokens that the registry has seen: those of another storage, or of one that was lost, too.
        self._lease = Lease(place.below("lease"), least=1 if found.line is None else found.line.state().fence + 1)
        self._began = time.monotonic()

    def run(self) -> int:
        """Take the lease and do what is to be done; returns the exit code."""
        if not self._lease.acquire_unless_alive():
            self._require_nothing_accepted()
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

    def _require_nothing_accepted(self) -> None:
        """What a person says must not be lost in a call that does nothing."""
        if (accept := self._request.arguments["accept"]) is not None:
            raise ConflictError(
                f"another call is at it (line {self._found.name}), so that --accept {accept} was not done: run the "
                "same command again when that one has ended"
            )

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
        acts = Acts(self._request, self._storage, self._store, self._console, self._found.name, self._sets, self._lease)
        done = acts.done
        try:
            if self._found.line is not None:
                self._found.line.fence(self._lease.number, why=f"re-alignment {number} begins")
            memory = self._first(acts) if self._found.first else self._again(acts, interrupted)
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

    def _first(self, acts: Acts) -> Memory:
        if self._request.arguments["accept"] is not None:
            raise ConfigError(
                f"--accept: line {self._found.name} has no alignment yet, and holds no batch: leave it out"
            )
        acts.say(f"line {self._found.name} has no alignment yet: the first one is made")
        rows = frozenset(map(content_of, usable_pairs(self._request.run.data, DropLog(self._request.run.data))[0]))
        acts.align(self._request.run, "first alignment")
        production = acts.line().alias(self._request.run.registry.alias).version
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

    def _again(self, acts: Acts, unfinished: set[int]) -> Memory:
        run, line, done = self._request.run, acts.line(), acts.done
        if run.registry.line is None and (began := model_of(line)) not in (None, run.model.path):
            self._console.line(
                f"note: line {line.name} goes on with its own reference, made from {began}, and not with model.path "
                f"{run.model.path}. Another reference begins another line: give the recipe another name"
            )
        memory = self._records.memory()
        accept = self._request.arguments["accept"]
        found = look(run, self._storage, line, memory, self._sets, self._now, accept=accept, unfinished=unfinished)
        if measures := wants_measure(found.facts, run.realign):
            found = acts.measure(found)
        decision = decide(found.facts, run.realign)
        done.facts, done.decision = asdict(found.facts), asdict(decision)
        for sentence in (*found.said, *decision.notes):
            acts.say(sentence)
        memory = self._hold(found, decision, done, measured=measures)
        if decision.evaluate:
            acts.evaluate(found, memory, decision.evaluate)
        if decision.realign:
            acts.realign(found, memory, decision.realign)
        for one in memory.held:
            self._console.line(
                f"!! HELD: {one.pairs:,} pairs (batch {one.digest}, since {one.since[:10]}) wait for a person and are "
                f"not trained on. {one.why} Repair the data, or say --accept {one.digest[:8]}"
            )
        return self._remembered(memory, found, decision, acts.line())

    def _hold(self, found: Found, decision: Decision, done: Done, *, measured: bool) -> Memory:
        """The memory with each batch held, cleared when production was measured on it (as far as it can be: pairs that
        are too long are no matter, since none is trained on), or waiting for that."""
        held, waiting = list(found.memory.held), []
        cleared = self._sets.read(found.memory.cleared)
        since = self._now.isoformat(timespec="seconds")
        for batch, rows in zip(found.facts.batches, found.batches, strict=True):
            if batch.digest in decision.hold:
                held.append(Held(batch.digest, batch.pairs, since, decision.hold[batch.digest]))
                done.did.append(f"held {batch.pairs:,} pairs")
                done.said.insert(0, decision.hold[batch.digest])
            elif not measured:
                waiting.append(batch.digest)
            else:
                cleared |= rows
        return replace(found.memory, held=tuple(held), waiting=tuple(waiting), cleared=self._sets.keep(cleared))

    def _remembered(self, memory: Memory, found: Found, decision: Decision, line: Line) -> Memory:
        production = line.alias(self._request.run.registry.alias).version
        at = self._now.isoformat(timespec="seconds")
        memory = replace(memory, production=production)
        if (decision.evaluate or decision.realign) and production:
            memory = replace(memory, evaluated_version=production, evaluated_at=at)
        if decision.realign:
            held = frozenset[str]().union(*(self._sets.read(one.digest) for one in memory.held))
            known = self._sets.keep(found.pairs.keys() - held)
            memory = replace(memory, known=known, cleared=EMPTY, waiting=(), aligned_at=at)
        else:
            # Also what another job had trained on, and a call that was killed when it had moved production.
            seen = self._sets.read(memory.known) | (found.pairs.keys() - found.new - found.held_rows)
            if production not in (0, found.memory.production):
                seen |= made_from(self._storage, line, production) or frozenset()
                if production == line.state().versions - 1:
                    memory = replace(memory, aligned_at=at)
            memory = replace(memory, known=self._sets.keep(seen))
        return memory


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
