from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calls import MAX_DEATHS, Call, Deaths, Waiting
from pipeline.errors import ClusterError


def calls(number: int, taken: list[int] | None = None) -> Iterator[Call]:
    for index in range(number):
        if taken is not None:
            taken.append(index)
        yield Call("compute", (index,), f"shard {index} of train")


class TestWaiting:
    def test_no_calls(self) -> None:
        waiting = Waiting([])
        assert waiting.at_most(2) == 0
        assert not waiting
        assert waiting.take() is None

    def test_it_takes_no_more_than_it_is_asked_for(self) -> None:
        taken: list[int] = []
        waiting = Waiting(calls(9, taken))
        assert waiting.at_most(3) == 3
        assert taken == [0, 1, 2]
        for _ in range(3):
            waiting.take()
        assert taken == [0, 1, 2]
        waiting.take()
        assert taken == [0, 1, 2, 3]

    def test_fewer_calls_than_actors(self) -> None:
        waiting = Waiting(calls(2))
        assert waiting.at_most(5) == 2
        assert waiting
        waiting.take()
        assert waiting
        waiting.take()
        assert not waiting

    def test_a_call_given_back_comes_first(self) -> None:
        waiting = Waiting(calls(4))
        waiting.at_most(2)
        first = waiting.take()
        assert first is not None
        assert first[0] == 0
        waiting.give_back(first)
        assert waiting.take() == first
        assert [task[0] for task in iter(waiting.take, None)] == [1, 2, 3]

    def test_a_call_given_back_at_the_end(self) -> None:
        waiting = Waiting(calls(1))
        waiting.at_most(1)
        task = waiting.take()
        assert waiting.take() is None
        assert not waiting
        assert task is not None
        waiting.give_back(task)
        assert waiting
        assert waiting.take() == task
        assert not waiting

    @given(st.integers(0, 8), st.integers(1, 4), st.lists(st.booleans(), max_size=30))
    def test_every_call_is_done_once_whatever_dies(self, number: int, actors: int, dies: list[bool]) -> None:
        waiting, fates, done = Waiting(calls(number)), iter(dies), []
        waiting.at_most(actors)
        while waiting:
            task = waiting.take()
            if task is None:
                continue
            if next(fates, False):
                waiting.give_back(task)
            else:
                done.append(task[0])
        assert done == list(range(number))


class TestDeaths:
    def test_a_call_is_tried_three_times(self) -> None:
        deaths = Deaths("ReferenceActor", "reference.batch_tokens")
        assert MAX_DEATHS == 3
        assert deaths.over_call(7, "shard 7 of train", "killed") is None
        assert deaths.over_call(7, "shard 7 of train", "killed") is None
        assert str(deaths.over_call(7, "shard 7 of train", "End of file")) == (
            "3 actors died while they computed shard 7 of train; the last one: End of file; if they ran out of memory, "
            "lower one of reference.batch_tokens; then run the same command again to go on"
        )

    @given(st.lists(st.integers(0, 5)))
    def test_calls_are_counted_apart(self, indices: list[int]) -> None:
        deaths = Deaths("Actor", "x")
        seen: list[int] = []
        for index in indices:
            seen.append(index)
            error = deaths.over_call(index, "work", "killed")
            assert (error is not None) == (seen.count(index) >= 3)
            assert error is None or isinstance(error, ClusterError)

    @pytest.mark.parametrize(
        ("events", "ends"),
        [
            ("ddd", True),
            ("ddsdd", False),
            ("ddsddd", True),
            ("ds" * 9, False),
            ("n" * 9, False),
            ("ndndnd", True),
        ],
    )
    def test_only_deaths_in_a_row_end_the_start(self, events: str, ends: bool) -> None:
        deaths = Deaths("ReferenceActor", "x")
        error = None
        for event in events:
            if event == "s":
                deaths.started()
            else:
                error = deaths.while_starting("killed", ran=event != "n")
        assert (error is not None) == ends
        if error is not None:
            message = r"3 actors in a row died while starting \(ReferenceActor\); the last one: killed; if they ran out"
            with pytest.raises(ClusterError, match=message):
                raise error

    def test_a_death_over_a_call_is_none_at_the_start(self) -> None:
        deaths = Deaths("Actor", "x")
        deaths.while_starting("killed")
        deaths.while_starting("killed")
        assert deaths.over_call(0, "work", "killed") is None
        assert deaths.while_starting("killed") is not None
