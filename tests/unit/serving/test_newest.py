"""Every request gets a state that was looked up after it came, or is told that there is none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ArtifactError, RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.state import State
from pipeline.serving.newest import FULL_S, Newest, Reader, UnreachableError
from tests.unit.release import lines


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def newest(read: Callable[[], State], **options: Any) -> Newest:
    return Newest(read, **{"stale_s": 5.0, "lookup_s": 1.0, "failed": lambda why: None, **options})


def test_a_look_up_begins_after_its_request_and_is_shared() -> None:
    began: list[float] = []

    def read() -> State:
        began.append(time.monotonic())
        time.sleep(0.02)
        return State(registered_by=tuple(range(len(began))))

    async def test() -> None:
        looked = newest(read)

        async def request(after_s: float) -> None:
            await asyncio.sleep(after_s)
            came = time.monotonic()
            state = await looked.get()
            assert began[state.versions - 1] >= came

        await asyncio.gather(*(request(0.001 * number) for number in range(200)))
        assert len(began) <= 12, "200 requests in 0.2 s share look-ups of 0.02 s"
        looked.close()

    run(test())


def test_a_state_may_be_stale_for_a_while() -> None:
    now = [0.0]
    told: list[str] = []
    works = [True]

    def read() -> State:
        if not works[0]:
            raise ArtifactError("the endpoint cannot be reached")
        return State((1,))

    async def test() -> None:
        looked = newest(read, clock=lambda: now[0], failed=told.append)
        assert looked.age_s is None
        await looked.get()
        works[0] = False
        now[0] = 5.0
        assert (await looked.get()).versions == 1
        now[0] = 5.1
        with pytest.raises(UnreachableError, match="cannot be reached"):
            await looked.get()
        assert len(told) == 2
        works[0] = True
        await looked.get()
        assert looked.age_s == 0

    run(test())


def test_a_registry_that_hangs_holds_nobody_up_for_long() -> None:
    hangs = threading.Event()

    def read() -> State:
        hangs.wait(20)
        return State((1,))

    async def test() -> None:
        looked = newest(read, lookup_s=0.05)
        began = time.monotonic()
        answers = await asyncio.gather(*(looked.get() for _ in range(20)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {UnreachableError}
        assert time.monotonic() - began < 2
        hangs.set()
        await asyncio.sleep(0.05)
        assert (await looked.get()).versions == 1

    run(test())


def test_a_trail_that_is_not_there_is_no_empty_line(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="is gone"):
        Reader(Line(Place(str(tmp_path), "--storage"), "0123456789abcdef"))()


def test_each_move_is_seen_and_a_trail_that_was_cut_off_too(tmp_path: Path) -> None:
    line = lines.begin(str(tmp_path / "registry"), tmp_path / "made")
    lines.register(line, tmp_path / "made", 1)
    now = [0.0]
    read = Reader(line, lambda: now[0])
    for number in range(10):
        expected = read().alias(lines.ALIAS).version
        line.promote(lines.ALIAS, 1 - expected, expected=expected, why=f"move {number}")
        assert read().alias(lines.ALIAS).version == 1 - expected
        assert read() == line.state()
    records = sorted(Path(line.place.root).glob("audit/*.json"))
    now[0] = FULL_S
    Path(line.place.root, "aliases", "99999999.json").write_text("{}")
    with pytest.raises(RegistryError, match="record 99999999 is missing"):
        read()
    Path(line.place.root, "aliases", "99999999.json").unlink()
    read()
    records[-1].unlink()
    with pytest.raises(RegistryError, match=rf"record {len(records)} is missing"):
        read()
