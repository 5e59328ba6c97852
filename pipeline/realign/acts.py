"""What a call does when it was decided: measure, evaluate production alone, align. Each is the stages of other jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.artifacts import Store
from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.data.sources import left_out, source_digest
from pipeline.errors import ConflictError, DataError
from pipeline.job import execute_run, publish, recipe_name
from pipeline.lease import Lease
from pipeline.realign.look import Found
from pipeline.realign.records import Memory
from pipeline.realign.rows import RowSets
from pipeline.release.line import Line
from pipeline.release.registry import open_registry, root_of
from pipeline.releasing import COPIES, PRODUCTION_ALONE
from pipeline.stages import read_json
from pipeline.storage import Storage


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


class Acts:
    """The doing of one call, under its lease.

    Args:
        name: of the line.
        sets: of pairs, by the digests in the memory.
    """

    def __init__(
        self,
        request: JobRequest,
        storage: Storage,
        store: Store,
        console: Console,
        name: str,
        sets: RowSets,
        lease: Lease,
    ) -> None:
        self._request, self._storage, self._store, self._console = request, storage, store, console
        self._name, self._sets, self._lease = name, sets, lease
        self.done = Done()

    def line(self) -> Line:
        """The line as it is now."""
        return open_registry(root_of(self._storage, self._request.run.registry.root)).line(self._name)

    def say(self, sentence: str) -> None:
        """A sentence for the console and the record."""
        self.done.said.append(sentence)
        self._console.line(sentence)

    def measure(self, found: Found) -> Found:
        """Production's accuracy on the batches."""
        from pipeline.realign.measure import judged_by, measure

        copies = self._storage.here / COPIES
        line = self.line()
        reference, policy = (line.fetch(str(version), copies) for version in (0, found.facts.production))
        rows = [found.pairs[content] for content in sorted(frozenset[str]().union(*found.batches))]
        self._console.line(f"{len(rows):,} new pairs: what version {policy.version} in production makes of them")
        right = measure(self._request.run, rows, reference, policy, self._storage, self._console)
        self.done.did.append(f"measured {len(rows):,} new pairs")
        return found.measured(right, judged_by(policy))

    def evaluate(self, found: Found, memory: Memory, reasons: Sequence[str]) -> None:
        """Production alone, by the run's data; back to the reference when it demonstrably breaks a limit."""
        from pipeline.align import AlignmentRun

        self._require_lease()
        self._require_same(found)
        self._reasons("production is evaluated", reasons)
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
        self.done.audit.append(record.number)
        self.done.artifacts |= {name: item.key for name, item in run.planned.items()}
        back = any(move.alias == self._request.run.registry.alias for move in record.event.moves)
        self.done.did.append("rolled back to the reference" if back and not there else "evaluated")
        again = ", as before: nothing that it depends on has changed" if there else ""
        self.say(f"{record.why} (audit record {record.number}{again})")
        if back and there:
            self.say(
                f"version {found.facts.production} was put into production again since by audit record "
                f"{self.line().alias(self._request.run.registry.alias).moved_by}, and stays"
            )

    def realign(self, found: Found, memory: Memory, reasons: Sequence[str]) -> None:
        """A policy from the line's reference, on all pairs that are not held."""
        self._reasons("a policy is aligned anew", reasons)
        run = self._on_line(self._request.run, memory)
        if run.realign.pilot is not None:
            from pipeline.realign.pilot import chosen_anew

            run, said = chosen_anew(self._request, run)
            self.say(said)
        self._require_same(found)
        self.align(run, "re-aligned")

    def align(self, run: RunConfig, what: str) -> None:
        """The graph of jobs/align.py, to its report."""
        from pipeline.align import AlignmentRun

        self._require_lease()
        alignment = AlignmentRun(recipe_name(self._request), run, self._storage, fence=self._lease.number)
        result = execute_run(alignment, self._store, self._console)
        alignment.remove_checkpoints()
        directory = publish(alignment, replace(self._request, run=run), result)
        release = read_json(result["register"].path / "release.json")
        self.done.release = {
            name: release[name] for name in ("version", "outcome", "before", "after", "record", "when")
        }
        self.done.audit.append(release["record"])
        self.done.artifacts |= {name: item.key for name, item in alignment.planned.items()}
        self.done.did.append(what)
        self.say(f"{result['register'].info['note']} (audit record {release['record']})")
        self._console.line(f"report: {directory}/report.html")

    def _on_line(self, run: RunConfig, memory: Memory) -> RunConfig:
        """The run with the line's reference for its model, and without the pairs that are held."""
        registry = run.registry.model_copy(update={"line": self._name})
        out = left_out(run.data).union(*(self._sets.read(one.digest) for one in memory.held))
        path = self._sets.where(self._sets.keep(out)) if out else None
        data = run.data.model_copy(update={"leave_out": path})
        return run.model_copy(update={"registry": registry, "data": data})

    def _require_lease(self) -> None:
        self._lease.beat()  # a process that slept learns it at once
        if self._lease.lost:
            raise ConflictError(
                f"the lease of line {self._name} was taken over by another call, while this one did not move: "
                "nothing was changed"
            )

    def _reasons(self, what: str, reasons: Sequence[str]) -> None:
        self.say(f"{what}: {'; '.join(reasons)}")

    def _require_same(self, found: Found) -> None:
        """Pairs that came after the look were not looked at, and must not be trained on."""
        if source_digest(self._request.run.data) != found.source:
            raise DataError(
                f"{self._request.run.data.path} has changed since this call looked at it: run the same command again"
            )
