"""Whole calls without Ray: what one call knows, the next one knows, too."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import JobRequest
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.data.checks import DropLog
from pipeline.data.prepare import usable_pairs
from pipeline.data.tables import write_table
from pipeline.errors import ConflictError
from pipeline.lease import Lease
from pipeline.realign.call import Call
from pipeline.realign.job import DIRECTORY, find_line
from pipeline.realign.records import Entry, Records
from pipeline.records import SPLITS, PairRow
from pipeline.release.line import Line
from pipeline.storage import Storage, open_storage
from tests.unit.release import lines

KEY = "0123456789abcdef0123456789abcdef"


class Site:
    """A line with the reference in production, and a schedule that measures and trains nothing."""

    def __init__(self, folder: Path) -> None:
        self.storage: Storage = open_storage(str(folder / "runs"))
        self.models, self.data = folder / "models", folder / "pairs.jsonl"
        self.line: Line = lines.begin(self.storage.at("registry"), self.models)
        self.records = Records(self.storage.place(DIRECTORY, self.line.name, "records"))

    def run(self) -> RunConfig:
        quiet = {"min_new_pairs": 1000, "suspect_below": None, "max_accuracy_drop": None, "max_age_days": None}
        values = {"data": {"path": str(self.data)}, "model": {"path": "any"}, "realign": quiet}
        return RunConfig.model_validate(values | {"registry": {"line": self.line.name}})

    def call(self, pairs: int, accept: str | None = None) -> Entry:
        rows = ({"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(pairs))
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments: dict[str, Any] = {"now": None, "accept": accept, "list": None}
        request = JobRequest("any", self.storage.root, False, self.run(), None, arguments)
        now = datetime(2026, 3, 1, tzinfo=UTC)
        with Console() as console:
            found = find_line(request, self.storage)
            assert Call(request, self.storage, self.storage.store(), console, now, found).run() == 0
        return self.records.entries()[-1]

    def align_elsewhere(self, number: int, fence: int | None = None) -> None:
        """What jobs/align.py leaves: a version in production, and the pairs that it was made from."""
        with self.storage.store().stage("data", KEY, {}) as staging:
            pairs = usable_pairs(self.run().data, DropLog(self.run().data))[0]
            for split in SPLITS:
                write_table(staging.path / f"{split}.parquet", pairs if split == "train" else [], PairRow)
        lines.write_model(self.models / str(number), number)
        version = self.line.register(self.models / str(number), {"stages": {"data": KEY}}, why="a test").version
        seen = self.line.alias("production").moved_by
        self.line.decide("production", version, version, seen=seen, why="it holds", details={"gate": {}}, fence=fence)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def facts(entry: Entry) -> dict[str, Any]:
    assert entry.outcome == "nothing to do"
    assert entry.end is not None
    return dict(entry.end["facts"])


def test_what_another_job_trained_on_stays_known(site: Site) -> None:
    assert facts(site.call(10))["new"] == 10
    site.align_elsewhere(1)
    for _ in range(2):
        found = facts(site.call(10))
        assert (found["production"], found["new"]) == (1, 0)
    entry = site.call(13)
    assert facts(entry)["new"] == 3
    assert entry.end is not None
    assert entry.end["memory"]["aligned_at"].startswith("2026-03-01"), "an alignment is one, whoever made it"


def test_what_a_killed_call_put_into_production_is_known_though_its_reasons_are_gone(site: Site) -> None:
    site.call(10)
    fence = site.line.state().fence
    site.records.begin("begun", {"now": "2026-02-01T00:00:00+00:00", "fence": fence, "recipe": "any"})
    site.align_elsewhere(1, fence)
    assert facts(site.call(10))["new"] == 10, "gone on with: it may still ask for what the killed call did"
    assert facts(site.call(10))["new"] == 0


def test_tokens_rise_above_those_of_a_schedule_that_is_gone(site: Site) -> None:
    """Another storage beside the same registry, or a lost directory of leases: its tokens were shown already."""
    site.line.fence(57, why="a test")
    assert site.call(10).first["fence"] == 58
    assert site.line.state().fence == 58


def test_an_acceptance_is_never_lost_in_a_call_that_does_nothing(site: Site) -> None:
    site.call(10)
    with Lease(site.storage.place(DIRECTORY, site.line.name, "lease"), stale_s=6).held(pytest.fail):
        assert site.call(10).outcome == "skipped"
        with pytest.raises(ConflictError, match=r"--accept abc was not done: run the same\s+command again"):
            site.call(10, accept="abc")
