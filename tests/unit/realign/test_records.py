"""Records that are created once, and what is remembered from them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.realign.records import Held, Memory, Records
from pipeline.realign.rows import EMPTY, RowSets, digest_of
from pipeline.realign.show import timeline

MEMORY = Memory(
    2, "a" * 16, "b" * 16, ("d" * 16,), (Held("c" * 16, 60, "2026-01-05", "swapped?"),), ("1-risk",), 2, "2026", "2025"
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Place(str(tmp_path / "records")))


def about(fence: int = 1) -> dict[str, object]:
    return {"now": "2026-01-05T06:00:00+00:00", "fence": fence}


def test_a_call_that_ends_leaves_what_the_next_one_knows(records: Records) -> None:
    assert records.memory() == Memory()
    number = records.begin("begun", about())
    assert records.entries()[0].outcome == "running"
    assert records.end(number, {"outcome": "re-aligned", "memory": MEMORY.as_dict()})
    assert Records(records.place).memory() == MEMORY
    assert records.entries()[0].outcome == "re-aligned"


def test_what_failed_or_was_skipped_or_killed_forgets_nothing(records: Records) -> None:
    records.end(records.begin("begun", about()), {"outcome": "evaluated", "memory": MEMORY.as_dict()})
    records.begin("skipped", about())
    records.end(records.begin("begun", about(3)), {"outcome": "failed", "memory": None})
    killed = records.begin("begun", about(4))
    assert records.memory() == MEMORY
    assert [entry.number for entry in records.open_entries()] == [killed], "a skipped one has no end to miss"
    assert [entry.number for entry in records.unremembered()] == [4, 3, 2]


def test_an_end_is_written_once_and_what_comes_late_lies_beside_it(records: Records) -> None:
    number = records.begin("begun", about())
    assert records.end(number, {"outcome": "interrupted", "memory": None, "audit": []})
    assert not records.end(number, {"outcome": "re-aligned", "memory": MEMORY.as_dict()})
    records.late(number, {"outcome": "failed", "error": "the lease was taken over"})
    assert records.memory() == Memory(), "what an overtaken call knew counts for nothing"
    (entry,) = Records(records.place).entries()
    assert entry.outcome == "interrupted"
    assert "overtaken: failed" in "\n".join(timeline("0123", [entry]))


def test_a_document_whose_answer_was_lost_is_there(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again and hears that there is one already: it is its own."""
    create = Place.create

    def twice(self: Place, name: str, data: bytes) -> bool:
        create(self, name, data)
        return create(self, name, data)

    monkeypatch.setattr(Place, "create", twice)
    number = records.begin("begun", about())
    assert records.end(number, {"outcome": "re-aligned", "memory": MEMORY.as_dict()})
    assert [entry.outcome for entry in records.entries()] == ["re-aligned"]


def test_numbers_are_given_once(records: Records) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(Records(records.place).begin("begun", about())))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))


def test_a_changed_document_is_found(records: Records, tmp_path: Path) -> None:
    number = records.begin("begun", about())
    records.end(number, {"outcome": "re-aligned", "memory": MEMORY.as_dict()})
    path = tmp_path / "records" / "00000001-end.json"
    path.write_bytes(path.read_bytes().replace(b"re-aligned", b"evaluated!"))
    with pytest.raises(ArtifactError, match=r"00000001-end\.json of a re-alignment was changed"):
        Records(records.place).memory()
    (tmp_path / "records" / "00000001.json").unlink()
    with pytest.raises(ArtifactError, match=r"00000001\.json of a re-alignment is gone"):
        Records(records.place).entries()


def test_sets_of_rows(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "rows"))
    sets = RowSets(place)
    digest = sets.keep(["b" * 16, "a" * 16, "b" * 16])
    assert digest == digest_of({"a" * 16, "b" * 16}) != digest_of({"a" * 16})
    assert RowSets(place).read(digest) == {"a" * 16, "b" * 16}
    assert sets.keep([]) == EMPTY
    assert sets.read(EMPTY) == frozenset()
    assert Path(sets.where(digest)).read_text() == "a" * 16 + "\n" + "b" * 16 + "\n"
    dry = RowSets(place, dry=True)
    assert dry.read(dry.keep(["c" * 16])) == {"c" * 16}
    assert place.names() == [f"{digest}.txt"]
    Path(sets.where(digest)).write_text("a" * 16 + "\n")
    with pytest.raises(ArtifactError, match="was changed"):
        RowSets(place).read(digest)
    with pytest.raises(ArtifactError, match="is gone"):
        sets.read("d" * 16)


def test_a_timeline_without_calls() -> None:
    assert "no call of jobs/realign.py" in timeline("0123", [])[0]
