from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.training.prefetch import ahead


def counted(made: list[int], last: int = 10) -> Iterator[int]:
    for number in range(last):
        made.append(number)
        yield number


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_the_same_items_in_the_same_order() -> None:
    assert list(ahead(counted([], 100))) == list(range(100))
    assert list(ahead([])) == []


def test_two_are_made_ahead_and_no_more() -> None:
    made: list[int] = []
    items = ahead(counted(made))
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2], "one taken, one ready, one in the hand of the maker"
    items.close()  # type: ignore[attr-defined]


def test_an_error_comes_where_its_item_would() -> None:
    def faulty() -> Iterator[int]:
        yield 1
        raise ValueError("row 7 is damaged")

    items = ahead(faulty())
    assert next(items) == 1
    with pytest.raises(ValueError, match="row 7 is damaged"):
        next(items)


def test_the_thread_ends_when_nobody_listens() -> None:
    before = threads()
    items = ahead(counted([], 10**6))
    next(items)
    assert threads() == before + 1
    items.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads() == before
