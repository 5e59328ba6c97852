from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pipeline.digests import seal, unseal
from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.state import Event, State
from pipeline.release.trail import FIRST, KEY_VARIABLE, Trail, name_of, number_of
from pipeline.release.verify import verify

FENCED = Event("fenced", None, (), 1)


def register_next(state: State) -> Event:
    return Event("registered", state.versions)


def fill(trail: Trail, count: int) -> None:
    for number in range(count):
        assert trail.append(register_next, who="me", why=f"the {number}th") is not None


class TestAppending:
    def test_an_empty_trail(self, root: str, tmp_path: Path) -> None:
        trail = Trail(Place(root))
        assert (trail.head(), trail.numbers(), trail.names()) == (None, [], ([], []))
        assert list(tmp_path.iterdir()) == []

    def test_records_name_the_one_before(self, root: str) -> None:
        trail = Trail(Place(root))
        first = trail.append(register_next, who="me", why="one", details={"id": "x"})
        second = trail.append(register_next, who="you", why="two: ä", details=None)
        assert first is not None
        assert second is not None
        assert (first.number, first.previous, first.who, first.why, first.details) == (
            1,
            FIRST,
            "me",
            "one",
            {"id": "x"},
        )
        assert (second.number, second.previous, second.state.versions) == (2, first.digest, 2)
        assert trail.head() == trail.read(2) == second
        assert first.mac is second.mac is None
        assert trail.names() == (["00000001.json", "00000002.json"],) * 2
        assert unseal(trail.table_bytes(2)) == {"number": 2, "head": second.digest, "aliases": {}}

    def test_nothing_that_is_refused_or_not_wanted_is_written(self, root: str) -> None:
        trail = Trail(Place(root))
        assert trail.append(lambda state: None, who="me", why="nothing") is None
        with pytest.raises(RegistryError, match="there is no version 3"):
            trail.append(lambda state: Event("decided", 3), who="me", why="no")
        assert trail.names() == ([], [])

    def test_it_is_proposed_again_in_the_state_that_somebody_else_made(self, root: str) -> None:
        trail, other, seen = Trail(Place(root)), Trail(Place(root)), []

        def propose(state: State) -> Event:
            seen.append(state.versions)
            if len(seen) < 3:
                fill(other, 1)
            return register_next(state)

        record = trail.append(propose, who="me", why="late")
        assert seen == [0, 1, 2]
        assert record is not None
        assert record.number == record.state.versions == 3

    def test_a_store_that_is_asked_twice_for_one_record(self, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its answer was lost, the client repeats the request and hears that the object is there."""
        trail = Trail(Place(root))
        create = trail._records.create
        monkeypatch.setattr(trail._records, "create", lambda name, data: create(name, data) and create(name, data))
        fill(trail, 2)
        assert trail.numbers() == [1, 2]

    def test_many_at_once(self, root: str) -> None:
        """Every record of every thread is there once."""
        reasons: list[str] = []

        def work(number: int) -> None:
            trail = Trail(Place(root))
            for turn in range(5):
                why = f"{number} {turn}"
                record = trail.append(lambda state: FENCED, who="me", why=why)
                if record is not None and trail.read(record.number).why == why:
                    reasons.append(why)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        trail = Trail(Place(root))
        assert trail.numbers() == list(range(1, 21))
        assert sorted(trail.read(number).why for number in trail.numbers()) == sorted(reasons)
        assert len(set(reasons)) == 20
        assert verify(Line(Place(root), "")).findings == ()

    def test_a_table_that_its_writer_did_not_come_to(self, root: str) -> None:
        place = Place(root)
        trail = Trail(place)
        fill(trail, 3)
        table = trail.table_bytes(3)
        place.below("aliases").remove(name_of(3))
        assert trail.head() == trail.read(3)
        fill(trail, 1)
        assert trail.table_bytes(3) == table

    def test_a_long_listing_that_leaves_one_out(self, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        trail = Trail(Place(root))
        fill(trail, 3)
        names = trail._records.names()
        monkeypatch.setattr(trail._records, "names", lambda: [name for name in names if name != name_of(2)])
        assert trail.head() == trail.read(3)


class TestReading:
    def test_what_was_changed(self, root: str) -> None:
        """Nothing is moved on a trail whose end is not as it was written."""
        place = Place(root)
        trail = Trail(place)
        fill(trail, 4)
        records, tables = place.below("audit"), place.below("aliases")
        whole = {name: (records.read(name), tables.read(name)) for name in records.names()}
        first, second, last = name_of(1), name_of(2), name_of(4)
        other = seal(unseal(whole[last][0]) | {"why": "another"})

        def refused(message: str) -> None:
            for act in (trail.head, lambda: fill(trail, 1)):
                with pytest.raises(
                    RegistryError, match=f"audit trail in .* was changed: {message}.*registry.py verify"
                ):
                    act()
            assert set(records.names()) <= set(whole)
            for name, (record, table) in whole.items():
                records.write(name, record)
                tables.write(name, table)

        records.remove(last)
        refused("record 4 is missing, though the aliases were moved by it")
        records.remove(second)
        refused("record 2 is missing")
        records.write(last, whole[last][0].replace(b"the 3th", b"the 4th"))
        refused("record 4 is damaged: its content differs from its own digest")
        records.write(last, b"{")
        refused("record 4 is damaged")
        records.write(last, seal({"number": 4}))
        refused("record 4 is damaged: it is no record")
        records.write(last, whole[first][0])
        refused("record 4 says that it is number 1")
        records.write(last, other)
        refused("record 4 is not the one that the aliases name")
        tables.write(last, whole[last][1][:-2])
        refused("the aliases of record 4 are damaged")
        tables.write(last, seal({"number": 4}))
        refused("the aliases of record 4 are damaged")
        fill(trail, 1)

    def test_one_that_is_not_there(self, root: str) -> None:
        with pytest.raises(RegistryError, match="record 7 is missing"):
            Trail(Place(root)).read(7)


class TestKey:
    def test_records_are_signed(self, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY_VARIABLE, "a key")
        trail = Trail(Place(root))
        fill(trail, 2)
        macs = [trail.read(number).mac for number in (1, 2)]
        assert [len(bytes.fromhex(mac or "")) for mac in macs] == [32, 32]
        assert macs[0] != macs[1]
        assert "a key" not in json.dumps([trail.record_bytes(1).decode(), trail.table_bytes(1).decode()])

    def test_a_signed_trail_without_the_key(self, root: str) -> None:
        signed = Trail(Place(root), key=b"a key")
        fill(signed, 1)
        unsigned = Trail(Place(root))
        assert unsigned.head() == signed.head()
        with pytest.raises(
            RegistryError, match=f"is signed: set {KEY_VARIABLE} to its key, nothing is written without"
        ):
            fill(unsigned, 1)
        assert signed.numbers() == [1]

    def test_a_key_may_come_later(self, root: str) -> None:
        fill(Trail(Place(root)), 1)
        signed = Trail(Place(root), key=b"a key")
        fill(signed, 1)
        assert [signed.read(number).mac is None for number in (1, 2)] == [True, False]


@pytest.mark.parametrize("name", ["1.json", "00000001", "00000001.txt", "0000000a.json", "00000001.json.json", "²"])
def test_names_that_are_none_of_the_trails(name: str) -> None:
    assert number_of(name) is None


def test_names_and_numbers() -> None:
    assert [number_of(name_of(number)) for number in (1, 99, 10**8 - 1)] == [1, 99, 10**8 - 1]
