"""What a call finds: pairs by content, batches by the call that found them, held ones, alerts, ages."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.data.formats import content_id
from pipeline.errors import ConfigError
from pipeline.realign.job import moment
from pipeline.realign.look import Found, look
from pipeline.realign.records import Held, Memory
from pipeline.realign.rows import EMPTY, RowSets
from pipeline.release.line import Line
from pipeline.storage import Storage, open_storage
from pipeline.watch.alerts import Alert, create, place_of
from tests.unit.release import lines

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def row(number: int) -> dict[str, str]:
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}


def ids(*numbers: int) -> frozenset[str]:
    return frozenset(content_id(*row(number).values()) for number in numbers)


class Site:
    """A storage with a line of three versions, 1 in production, and a file of pairs."""

    def __init__(self, folder: Path) -> None:
        self.storage: Storage = open_storage(str(folder / "runs"))
        models = folder / "models"
        self.line: Line = lines.begin(self.storage.at("registry"), models)
        lines.register(self.line, models, 1)
        self.line.decide("production", 1, 1, seen=0, why="it holds", details={"gate": {}}, fence=4)
        self.sets = RowSets(self.storage.place("realign", self.line.name, "rows"))
        self.data = folder / "pairs.jsonl"

    def look(self, memory: Memory, numbers: Any, **options: Any) -> Found:
        self.data.write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
        run = RunConfig.model_validate({"data": {"path": str(self.data)}, "model": {"path": "any"}})
        return look(run, self.storage, self.line, memory, self.sets, NOW, **options)

    def memory(self, **changed: Any) -> Memory:
        known = self.sets.keep(ids(*range(10)))
        return replace(Memory(1, known, evaluated_version=1, evaluated_at="2026-02-01T00:00:00+00:00"), **changed)

    def alert(self, number: int, version: int) -> None:
        name = f"{number:06d}-risk-up"
        what = Alert(name, "2026", self.line.name, "production", version, "risk-up", f"risk {number}", {}, "none", "")
        assert create(place_of(self.storage, self.line.name), what)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_pairs_are_known_by_content_wherever_they_stand(site: Site) -> None:
    found = site.look(site.memory(), [17, *range(9, -1, -1), 3, 16])
    assert found.new == ids(16, 17)
    assert (found.facts.new, found.facts.unmeasured, found.facts.production) == (2, 2, 1)
    assert site.look(site.memory(), range(10)).facts.batches == ()


def test_each_call_finds_a_batch_of_its_own(site: Site) -> None:
    earlier = site.sets.keep(ids(10, 11, 12))
    memory = site.memory(waiting=(earlier,), cleared=site.sets.keep(ids(20)))
    found = site.look(memory, [*range(10), 11, 12, 13, 20])
    assert found.batches == (ids(11, 12), ids(13)), "10 is gone, 20 was measured"
    assert found.facts.new == 4
    right = dict.fromkeys(ids(11, 13), True)
    measured = found.measured(right, None).facts.batches
    assert [(one.pairs, one.measured and one.measured.pairs) for one in measured] == [(2, 1), (1, 1)]


def test_held_pairs_are_not_new_until_they_are_accepted_or_repaired(site: Site) -> None:
    held = Held(site.sets.keep(ids(10, 11)), 2, "2026-02-01", "swapped?")
    memory = site.memory(held=(held,))
    found = site.look(memory, range(13))
    assert (found.new, found.held_rows, found.memory.held) == (ids(12), ids(10, 11), (held,))
    accepted = site.look(memory, range(13), accept=held.digest[:5])
    assert accepted.memory.held == ()
    assert accepted.facts.new == 3
    assert accepted.batches == (ids(12),), "what a person accepted is not measured again"
    assert "accepted by a person" in accepted.said[0]
    repaired = site.look(memory, [*range(10), 12, 30, 31])
    assert repaired.memory.held == ()
    assert repaired.new == ids(12, 30, 31)
    assert "is gone from the data" in repaired.said[0]
    half = site.look(memory, [*range(11), 12])
    assert half.memory.held == (held,)
    with pytest.raises(ConfigError, match=r"'ffff' names no single held batch; held are: [0-9a-f]{16} \(2 pairs\)"):
        site.look(memory, range(13), accept="ffff")


def test_alerts_count_once_and_only_for_what_is_in_production(site: Site) -> None:
    site.alert(1, version=1)
    site.alert(2, version=0)
    found = site.look(site.memory(), range(10))
    assert found.facts.alerts == ("risk 1",)
    assert any("not in production" in text for text in found.said)
    assert site.look(found.memory, range(10)).facts.alerts == ()
    site.alert(3, version=1)
    assert site.look(found.memory, range(10)).facts.alerts == ("risk 3",)


def test_ages_go_by_the_time_that_is_said(site: Site) -> None:
    facts = site.look(site.memory(aligned_at="2026-02-15T12:00:00+00:00"), range(10)).facts
    assert (facts.evaluated_days, facts.aligned_days) == (28.0, 13.5)
    other = site.look(site.memory(evaluated_version=9), range(10)).facts
    assert other.evaluated_days is not None, "since it was put there, by the audit trail"
    assert moment("2026-03-01T01:00+01:00") == NOW == moment("2026-03-01")
    with pytest.raises(ConfigError, match="'soon' is no time"):
        moment("soon")


def test_what_was_made_elsewhere_counts_as_new_and_is_said(site: Site) -> None:
    fresh = site.look(Memory(), range(10))
    assert fresh.facts.new == 10
    assert any("are not kept here" in text for text in fresh.said)
    # A call that was killed after it had moved production is gone on with: no news.
    assert not site.look(site.memory(production=0), range(10), unfinished={4}).said
    assert site.look(site.memory(production=0), range(10)).said
    assert site.sets.read(EMPTY) == frozenset()
