"""Versions are loaded ahead or when they are asked for, each once, and no more than there is room for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from pipeline.errors import RegistryError
from pipeline.serving.shelf import RETRY_S, LoadError, Shelf


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


class Versions:
    """Loads numbers as texts, and keeps count."""

    def __init__(self) -> None:
        self.loads: list[int] = []
        self.damaged: set[int] = set()
        self.slow: dict[int, threading.Event] = {}
        self.failures: list[int] = []
        self.now = 0.0

    def load(self, version: int) -> str:
        self.loads.append(version)
        if version in self.slow:
            self.slow[version].wait(20)
        if version in self.damaged:
            raise RegistryError(f"version {version} is damaged")
        return f"version {version}"

    def shelf(self, room: int = 2) -> Shelf[str]:
        return Shelf(self.load, room, failed=lambda number, why: self.failures.append(number), clock=lambda: self.now)


async def settled(shelf: Shelf[str], *versions: int) -> None:
    while set(shelf.loaded()) != set(versions):
        await asyncio.sleep(0.005)


def test_many_who_ask_share_one_load() -> None:
    async def test() -> None:
        made = Versions()
        shelf = made.shelf()
        assert set(await asyncio.gather(*(shelf.get(1, 5) for _ in range(50)))) == {"version 1"}
        assert made.loads == [1]

    run(test())


def test_what_is_wanted_is_loaded_in_order_and_stays() -> None:
    async def test() -> None:
        made = Versions()
        shelf = made.shelf()
        shelf.want((3, 0))
        await settled(shelf, 3, 0)
        assert made.loads == [3, 0]
        assert await shelf.get(7, 5) == "version 7"
        assert await shelf.get(8, 5) == "version 8"
        await settled(shelf, 3, 0, 8)
        shelf.want((8, 3))
        assert await shelf.get(9, 5) == "version 9"
        await settled(shelf, 8, 3, 9)

    run(test())


def test_who_asks_does_not_wait_behind_what_is_loaded_ahead() -> None:
    async def test() -> None:
        made = Versions()
        made.slow[5] = threading.Event()
        shelf = made.shelf()
        shelf.want((5, 6))
        await asyncio.sleep(0.02)
        assert await shelf.get(1, 1) == "version 1"
        with pytest.raises(LoadError, match=r"version 5 is still being loaded after 0.05 s"):
            await shelf.get(5, 0.05)
        made.slow[5].set()
        assert await shelf.get(5, 5) == "version 5", "the load goes on, whoever left"
        assert made.loads.count(5) == 1

    run(test())


def test_a_damaged_version_is_not_read_again_and_again() -> None:
    async def test() -> None:
        made = Versions()
        made.damaged.add(1)
        shelf = made.shelf()
        for _ in range(3):
            with pytest.raises(LoadError, match="version 1 is damaged"):
                await shelf.get(1, 5)
        assert (made.loads, made.failures) == ([1], [1])
        made.now = RETRY_S
        made.damaged.clear()
        assert await shelf.get(1, 5) == "version 1"

    run(test())


def test_what_could_not_be_loaded_ahead_is_tried_for_who_asks() -> None:
    async def test() -> None:
        made = Versions()
        made.damaged.add(1)
        shelf = made.shelf()
        for _ in range(3):
            shelf.want((1,))
            await asyncio.sleep(0.02)
        assert made.loads == [1]
        made.damaged.clear()
        assert await shelf.get(1, 5) == "version 1"

    run(test())
