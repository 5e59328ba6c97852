from __future__ import annotations

import pytest

from pipeline.config import DataConfig
from pipeline.data.checks import DropLog, RowError, check_pair, checked_text, label_cell
from pipeline.errors import DataError
from pipeline.records import PairRow


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ("p", "same", "same", "chosen equals rejected"),
        (" \n", "c", "r", "empty prompt"),
        ("p", " ", "r", "empty response"),
        ("p", "c", "", "empty response"),
    ],
)
def test_unusable_pairs(prompt: str, chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        check_pair(PairRow("id", "g", prompt, chosen, rejected, False))
    assert caught.value.reason == reason


def test_usable_pair() -> None:
    check_pair(PairRow("id", "g", "p", "c", "c ", False))


@pytest.mark.parametrize("value", [None, 1, 1.5, float("nan"), True, ["a"], {"a": 1}, b"a", "\ud800"])
def test_cells_that_are_no_text(value: object) -> None:
    with pytest.raises(RowError) as caught:
        checked_text(value, "field 'prompt'")
    assert caught.value.reason == "wrong type"
    caught.value.detail.encode("utf-8")


def test_labels_are_text_or_whole_numbers() -> None:
    assert [label_cell({"id": value}, "id") for value in ("a", 7, -1)] == ["a", "7", "-1"]
    for value in (None, 1.0, True, " ", ""):
        with pytest.raises(RowError):
            label_cell({"id": value}, "id")


def test_log_counts_and_stops_above_the_limit() -> None:
    log = DropLog(DataConfig(path="d.jsonl", max_dropped_fraction=0.5))
    for number, reason in enumerate(["duplicate", "empty prompt", "duplicate"], start=1):
        log.drop(f"d.jsonl:{number}", "", reason)
    assert log.counts() == {"duplicate": 2, "empty prompt": 1}
    log.finish(6)
    with pytest.raises(DataError) as caught:
        log.finish(5)
    assert str(caught.value) == (
        "3 of 5 rows of d.jsonl are unusable [duplicate: 2, first at d.jsonl:1; empty prompt: 1, first at d.jsonl:2]; "
        "that is more than data.max_dropped_fraction (0.5): correct the data or raise the limit"
    )


def test_nothing_left_is_an_error_even_without_a_limit() -> None:
    log = DropLog(DataConfig(path="d.jsonl", max_dropped_fraction=1))
    log.drop("d.jsonl:1", "", "duplicate")
    with pytest.raises(DataError, match="no row is left"):
        log.finish(1)


def test_strict_stops_at_the_first() -> None:
    log = DropLog(DataConfig(path="d.jsonl", strict=True))
    with pytest.raises(DataError, match=r"^d\.jsonl:4: wrong type \(field 'x' is null\)\. data\.strict stops"):
        log.drop("d.jsonl:4", "", "wrong type", "field 'x' is null")
