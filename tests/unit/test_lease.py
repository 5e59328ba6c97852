"""The lease: what it decides, and what follows when owners die, sleep too long or cannot be understood.

Places are real (in memory, or a directory that threads share); only clocks are set by hand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lease import Generation, Hold, Lease, Take, Wait, Watched, decide
from pipeline.places import Place

MINE, THEIRS = "me", "them"


@dataclass
class Clock:
    """Seconds that pass when somebody waits."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(f"memory://lease/{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()


def lease(place: Place, clock: Clock, sleep: Callable[[float], object] | None = None) -> Lease:
    return Lease(place, stale_s=30, clock=clock, sleep=sleep or clock.sleep)


class TestDecide:
    def test_nobody_ever_held_it(self) -> None:
        assert decide(None, MINE, None, 0.0, 30) == Take(1)

    def test_released(self) -> None:
        assert decide(Generation(7, THEIRS, 3, True), MINE, None, 0.0, 30) == Take(8)

    def test_a_new_face_is_watched_from_now_on(self) -> None:
        newest = Generation(7, THEIRS, 3)
        assert decide(newest, MINE, None, 50.0, 30) == Wait(Watched(newest, 50.0))

    @pytest.mark.parametrize("newest", [Generation(7, THEIRS, 4), Generation(8, "others", 0)])
    def test_what_changes_lives(self, newest: Generation) -> None:
        before = Watched(Generation(7, THEIRS, 3), 0.0)
        assert decide(newest, MINE, before, 1000.0, 30) == Wait(Watched(newest, 1000.0))

    def test_what_stands_still_is_dead_after_its_time(self) -> None:
        newest = Generation(7, THEIRS, 3)
        before = Watched(newest, 100.0)
        assert decide(newest, MINE, before, 129.9, 30) == Wait(before)
        assert decide(newest, MINE, before, 130.0, 30) == Take(8)

    def test_ones_own(self) -> None:
        assert decide(Generation(7, MINE, 3), MINE, None, 0.0, 30) == Hold(7)
        assert decide(Generation(7, MINE, 3, True), MINE, None, 0.0, 30) == Take(8)


class TestLease:
    def test_numbers_of_a_place_that_is_gone_are_not_given_again(self, place: Place) -> None:
        """Their tokens were shown to a store, which would refuse smaller ones for ever."""
        for least, number in ((58, 58), (58, 59), (1, 60)):
            with Lease(place, least=least).held(pytest.fail) as held:
                assert held.number == number

    def test_numbers_rise_and_what_is_over_is_swept(self, place: Place) -> None:
        clock = Clock()
        for number in range(1, 12):
            with lease(place, clock).held(pytest.fail) as held:
                assert held.number == number
        assert place.names() == ["00000011"]

    def test_an_owner_that_dies(self, place: Place) -> None:
        clock, waits = Clock(), []
        dead = lease(place, clock)
        assert dead.attempt()  # and never beats
        with lease(place, clock).held(lambda: waits.append(clock.now)) as held:
            assert held.number == dead.number + 1
            assert waits == [1000.0]
            assert 1030.0 <= clock.now < 1032.0

    def test_an_owner_that_beats_is_waited_for(self, place: Place) -> None:
        clock = Clock()
        owner = lease(place, clock)
        assert owner.attempt()

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if clock.now < 2000:
                owner.beat()
            elif clock.now < 2001.5:
                owner.release()

        with lease(place, clock, sleep).held(lambda: None) as held:
            assert (held.number, owner.lost) == (2, False)
        assert 2000 <= clock.now < 2010

    def test_one_that_wakes_too_late_learns_it_and_touches_nothing(self, place: Place) -> None:
        clock = Clock()
        asleep = lease(place, clock)
        assert asleep.attempt()
        with lease(place, clock).held(lambda: None) as held:
            assert not asleep.lost
            before = place.read("00000002")
            asleep.beat()
            assert asleep.lost
            asleep.release()
            assert place.names() == ["00000002"]
            assert place.read("00000002") == before
            assert not held.lost

    def test_clocks_of_others_do_not_matter(self, place: Place) -> None:
        early, late = Clock(5.0), Clock(1e9)
        assert lease(place, early).attempt()
        waiter = lease(place, late)
        assert not waiter.attempt()
        late.sleep(29)
        assert not waiter.attempt()
        late.sleep(1)
        assert waiter.attempt()

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"owner": 1}', b"\xff\xfe", b"null"])
    def test_a_document_nobody_understands_goes_stale(self, place: Place, data: bytes) -> None:
        place.write("00000041", data)
        place.write("other", b"not a generation")
        with lease(place, Clock()).held(lambda: None) as held:
            assert held.number == 42
        assert place.names() == ["00000042", "other"]

    def test_a_created_generation_whose_answer_was_lost_is_ones_own(self, place: Place) -> None:
        """A client repeats a request that got no answer, and is told that the object is there."""

        class Repeats(Place):
            def create(self, name: str, data: bytes) -> bool:
                super().create(name, data)
                return super().create(name, data)

        again = Lease(Repeats(place.root), clock=Clock())
        assert again.attempt()
        assert again.number == 1

    def test_it_beats_by_itself_and_stops(self, place: Place) -> None:
        with Lease(place, stale_s=0.3).held(pytest.fail):
            first = place.read("00000001")
            until = time.monotonic() + 5
            while place.read("00000001") == first and time.monotonic() < until:
                time.sleep(0.01)
            assert b'"beat": 0' in first
            assert place.read("00000001") != first
        last = place.read("00000001")
        assert b'"released": true' in last
        assert not [thread for thread in threading.enumerate() if thread.name == "lease"]

    def test_a_release_that_does_not_get_through_hides_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "place").mkdir()
        with pytest.raises(RuntimeError, match="real"), Lease(Place(str(tmp_path / "place"))).held(pytest.fail):  # noqa: PT012
            (tmp_path / "place").rename(tmp_path / "away")
            (tmp_path / "place").write_text("a file now")
            raise RuntimeError("real")

    def test_threads_that_race_never_meet(self, tmp_path: Path) -> None:
        inside, numbers, guard = [0], [], threading.Lock()

        def work() -> None:
            for _ in range(3):
                with Lease(Place(str(tmp_path)), sleep=lambda _: time.sleep(0.002)).held(lambda: None) as held:
                    with guard:
                        inside[0] += 1
                        assert inside[0] == 1
                        numbers.append(held.number)
                    time.sleep(0.003)
                    with guard:
                        inside[0] -= 1

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(numbers) == 18
        assert numbers == sorted(set(numbers))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["attempt", "release", "die"]), st.integers(0, 12))))
def test_living_owners_never_share(steps: list[tuple[int, str, int]]) -> None:
    """Three contenders in any order; the living owner beats at least every 12 seconds of 30."""
    store = fsspec.filesystem("memory").store
    store.clear()
    place, clock = Place("memory://lease/any"), Clock()
    contenders = [lease(place, clock) for _ in range(3)]
    holder: int | None = None
    newest = 0
    for who, what, seconds in steps:
        clock.sleep(seconds)
        if holder is not None:
            contenders[holder].beat()
            assert not contenders[holder].lost
        if what == "attempt" and who != holder and contenders[who].attempt():
            assert holder is None
            assert contenders[who].number > newest
            holder, newest = who, contenders[who].number
        elif what == "release" and who == holder:
            contenders[who].release()
            holder = None
        elif what == "die" and who == holder:
            contenders[who], holder = lease(place, clock), None
    store.clear()


class TestUnlessAlive:
    def test_a_free_one_is_taken_and_beats(self, place: Place) -> None:
        one = Lease(place, stale_s=0.3)
        assert one.acquire_unless_alive()
        first = place.read(f"{one.number:08d}")
        time.sleep(0.2)
        assert place.read(f"{one.number:08d}") != first
        one.release()

    def test_a_living_owner_is_left_alone_at_once(self, place: Place) -> None:
        clock = Clock()
        owner = lease(place, clock)
        assert owner.attempt()

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            owner.beat()

        other = lease(place, clock, sleep)
        began = clock.now
        assert not other.acquire_unless_alive()
        assert clock.now - began <= 2, "one beat is enough"
        owner.beat()
        assert not owner.lost

    def test_a_dead_owner_is_waited_for_and_followed(self, place: Place) -> None:
        clock = Clock()
        dead = lease(place, clock)
        assert dead.attempt()
        heir = lease(place, clock)
        began = clock.now
        assert heir.acquire_unless_alive()
        assert 30 <= clock.now - began <= 32
        assert heir.number > 1
        dead.beat()
        assert dead.lost
        heir.release()
