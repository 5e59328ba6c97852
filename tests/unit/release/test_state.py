"""The state machine alone: any sequence of what is allowed keeps the promises of a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConflictError, RegistryError
from pipeline.release.state import (
    CANDIDATE,
    PRODUCTION,
    AliasState,
    Event,
    Move,
    State,
    after,
    decision,
    promotion,
    roll_back,
    roll_back_target,
)

ALIASES = ("production", "canary")

versions = st.integers(0, 9)
aliases = st.sampled_from(ALIASES)
fences = st.none() | st.integers(0, 5)

proposals = st.one_of(
    st.builds(lambda: lambda state: Event("registered", state.versions)),
    st.builds(
        lambda alias, to, fence: lambda state: promotion(state, alias, to, state.alias(alias).version, fence=fence),
        aliases,
        versions,
        fences,
    ),
    st.builds(
        lambda alias, to: lambda state: roll_back(state, alias, roll_back_target(state, alias, to)),
        aliases,
        st.none() | versions,
    ),
    st.builds(
        lambda alias, version, goes: (
            lambda state: decision(
                state, alias, version, version if goes is True else goes, state.alias(alias).moved_by, None
            )
        ),
        aliases,
        versions,
        st.sampled_from([None, 0, True]),
    ),
    st.builds(lambda version: lambda state: Event("removed", version), versions),
    st.builds(lambda fence: lambda state: Event("fenced", None, (), fence), st.integers(0, 5)),
)
"""From a state to an event that somebody may want in it."""

Proposal = Callable[[State], Event | None]


def fold(wanted: list[Proposal]) -> list[tuple[Event, State]]:
    """The events that are allowed and the states after them, from a line with its reference and two versions on."""
    state, happened = State(), []
    for number in range(3):
        happened.append((Event("registered", number), state := after(state, Event("registered", number), number + 1)))
    for propose in wanted:
        try:
            event = propose(state)
            if event is None:
                continue
            state = after(state, event, len(happened) + 1)
        except RegistryError:
            continue
        happened.append((event, state))
    return happened


@given(st.lists(proposals, max_size=25))
def test_aliases_and_their_ways_back(wanted: list[Proposal]) -> None:
    visited: dict[str, list[int]] = {name: [0] for name in (*ALIASES, CANDIDATE)}
    for number, (event, state) in enumerate(fold(wanted), start=1):
        for move in event.moves:
            visited[move.alias].append(move.after)
            assert state.alias(move.alias).moved_by == number
        assert 0 not in state.removed
        for name, alias in state.aliases.items():
            assert 0 <= alias.version < state.versions
            assert alias.version not in state.removed
            assert alias.version == visited[name][-1]
            assert alias.version not in alias.fallback
            assert len(set(alias.fallback)) == len(alias.fallback)
            assert set(alias.fallback) <= set(visited[name][:-1])


@given(st.lists(proposals, max_size=25), aliases)
def test_rolling_back_twice_is_rolling_back_once(wanted: list[Proposal], alias: str) -> None:
    happened = fold(wanted)
    state = happened[-1][1]
    try:
        event = roll_back(state, alias, roll_back_target(state, alias, None))
    except RegistryError:
        assert not [one for one in state.alias(alias).fallback if one not in state.removed]
        return
    once = state if event is None else after(state, event, len(happened) + 1)
    assert roll_back(once, alias, roll_back_target(once, alias, None)) is None


@given(st.lists(proposals, max_size=25), aliases, versions)
def test_promoting_and_rolling_back_returns(wanted: list[Proposal], alias: str, version: int) -> None:
    happened = fold(wanted)
    state = happened[-1][1]
    there = state.alias(alias)
    try:
        event = promotion(state, alias, version, there.version)
        if event is None:
            assert version == there.version
            return
        promoted = after(state, event, len(happened) + 1)
    except RegistryError:
        assert version >= state.versions or version in state.removed
        return
    back = roll_back(promoted, alias, roll_back_target(promoted, alias, None))
    assert back is not None
    returned = after(promoted, back, len(happened) + 2).alias(alias)
    assert returned.version == there.version
    assert returned.fallback == tuple(one for one in there.fallback if one != version)


@given(st.lists(proposals, max_size=25), aliases)
def test_the_reference_is_always_a_way_back(wanted: list[Proposal], alias: str) -> None:
    happened = fold(wanted)
    state = happened[-1][1]
    if alias != PRODUCTION and alias not in state.aliases:
        with pytest.raises(RegistryError, match=f"there is no alias '{alias}'"):
            roll_back_target(state, alias, 0)
        return
    event = roll_back(state, alias, roll_back_target(state, alias, 0))
    state = state if event is None else after(state, event, len(happened) + 1)
    assert state.alias(alias).version == 0


@given(st.lists(proposals, max_size=25))
def test_as_json_and_back(wanted: list[Proposal]) -> None:
    for event, state in fold(wanted):
        assert State.from_dict(json.loads(json.dumps(state.as_dict()))) == state
        assert Event.from_dict(json.loads(json.dumps(event.as_dict()))) == event


@given(st.lists(proposals, max_size=25), st.lists(st.integers(0, 5), min_size=1))
def test_tokens_only_rise(wanted: list[Proposal], tokens: list[int]) -> None:
    state = fold(wanted)[-1][1]
    for token in tokens:
        if token < state.fence:
            with pytest.raises(ConflictError, match=f"token {token} was taken over"):
                after(state, Event("fenced", None, (), token), 99)
            with pytest.raises(ConflictError, match="taken over"):
                promotion(state, "production", 0, 0, fence=token)
        else:
            state = after(state, Event("fenced", None, (), token), 99)
            assert state.fence == token


def stands_at(version: int, *fallback: int, moved_by: int = 7, rolled_back: bool = False) -> State:
    """Six versions, of which 4 was removed."""
    return State(
        tuple(range(1, 7)),
        frozenset({4}),
        {"production": AliasState(version, moved_by, fallback, rolled_back)},
        fence=3,
    )


class TestPromotion:
    def test_it_moves_and_remembers_the_way_back(self) -> None:
        event = promotion(stands_at(2, 0, 1), "production", 5, 2, seen=7, fence=3)
        assert event == Event("promoted", 5, (Move("production", 2, 5),), 3)
        assert after(stands_at(2, 0, 1), event, 8).alias("production") == AliasState(5, 8, (0, 1, 2))

    def test_what_was_there_before_is_on_the_way_back_once(self) -> None:
        event = promotion(stands_at(2, 0, 1), "production", 1, 2)
        assert event is not None
        assert after(stands_at(2, 0, 1), event, 8).alias("production").fallback == (0, 2)

    def test_an_alias_that_is_there_already(self) -> None:
        assert promotion(stands_at(2, 0, 1), "production", 2, 2, seen=7, fence=3) is None

    @pytest.mark.parametrize(
        ("version", "expected", "seen", "fence", "message"),
        [
            (3, 1, None, None, "production points to version 2, not to 1: somebody else has moved it"),
            (2, 1, None, None, "production points to version 2, not to 1"),
            (3, 2, 6, None, r"production was moved meanwhile \(to version 2, by record 7\)"),
            (2, 2, 6, None, "production was moved meanwhile"),
            (3, 2, 7, 2, r"token 2 was taken over \(token 3 has been here\)"),
        ],
    )
    def test_what_somebody_else_was_faster_with(
        self, version: int, expected: int, seen: int | None, fence: int | None, message: str
    ) -> None:
        state = stands_at(2, 0, 1)
        with pytest.raises(ConflictError, match=message):
            after(state, promotion(state, "production", version, expected, seen, fence), 8)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("alias", "version", "message"),
        [
            ("production", 6, "no version 6"),
            ("production", -1, "no version -1"),
            ("production", 4, "version 4 was removed: choose another one"),
            ("reference", 1, "'reference' is version 0 for ever"),
            ("Prod", 1, "'Prod' is no name of an alias"),
            ("../x", 1, "is no name of an alias"),
        ],
    )
    def test_what_cannot_be(self, alias: str, version: int, message: str) -> None:
        state = stands_at(2, 0, 1)
        event = promotion(state, alias, version, state.alias(alias).version)
        assert event is not None
        with pytest.raises(RegistryError, match=message):
            after(state, event, 8)


class TestRollBack:
    def test_to_what_was_before(self) -> None:
        state = stands_at(3, 0, 2)
        assert roll_back_target(state, "production", None) == 2
        event = roll_back(state, "production", 2)
        assert event == Event("rolled back", 2, (Move("production", 3, 2),))
        assert after(state, event, 8).alias("production") == AliasState(2, 8, (0,), True)

    def test_a_second_one_stands_still(self) -> None:
        state = stands_at(2, 0, rolled_back=True)
        assert roll_back_target(state, "production", None) == 2
        assert roll_back(state, "production", 2) is None

    def test_what_was_removed_is_passed_over(self) -> None:
        assert roll_back_target(stands_at(3, 0, 2, 4), "production", None) == 2

    def test_nothing_to_go_back_to(self) -> None:
        for state in (State((1,)), stands_at(3, 4)):
            with pytest.raises(RegistryError, match=r"no previous version to go back to .--to reference is"):
                roll_back_target(state, "production", None)

    def test_to_the_reference(self) -> None:
        state = stands_at(3, 0, 2)
        event = roll_back(state, "production", 0)
        assert event is not None
        assert after(state, event, 8).alias("production") == AliasState(0, 8, (), True)

    def test_to_what_was_never_on_the_way_here(self) -> None:
        state = stands_at(2, 0, 1)
        event = roll_back(state, "production", 5)
        assert event is not None
        moved = after(state, event, 8)
        assert moved.alias("production") == AliasState(5, 8, (0, 1, 2)), "the way back stays within reach"
        assert roll_back_target(moved, "production", None) == 2

    def test_an_alias_that_nobody_made(self) -> None:
        with pytest.raises(RegistryError, match="there is no alias 'produciton'; there are production"):
            roll_back_target(stands_at(2, 0, 1), "produciton", 0)


class TestDecision:
    def test_the_candidate_and_the_alias_move_together(self) -> None:
        event = decision(stands_at(2, 0), "production", 3, 3, seen=7, fence=None)
        state = after(stands_at(2, 0), event, 8)
        assert (state.alias(CANDIDATE).version, state.alias("production")) == (3, AliasState(3, 8, (0, 2)))

    def test_the_alias_may_stay_though_it_was_moved(self) -> None:
        event = decision(stands_at(2, 0), "production", 3, None, seen=1, fence=None)
        assert event.moves == (Move(CANDIDATE, 0, 3),)

    def test_one_that_was_made_of_another_alias(self) -> None:
        with pytest.raises(ConflictError, match="production was moved meanwhile"):
            decision(stands_at(2, 0), "production", 3, 3, seen=6, fence=None)

    def test_back_to_the_reference_is_a_roll_back(self) -> None:
        state = after(stands_at(2, 0, 1), decision(stands_at(2, 0, 1), "production", 3, 0, seen=7, fence=None), 8)
        assert state.alias("production") == AliasState(0, 8, (), True)


class TestRemoval:
    @pytest.mark.parametrize(
        ("version", "message"),
        [
            (0, "version 0 is the reference, which is never removed"),
            (2, "version 2 is what production points to: move it first"),
            (4, "version 4 was removed already"),
            (6, "no version 6"),
        ],
    )
    def test_what_is_kept(self, version: int, message: str) -> None:
        with pytest.raises(RegistryError, match=message):
            after(stands_at(2, 0, 1), Event("removed", version), 8)

    def test_versions_are_registered_in_order(self) -> None:
        with pytest.raises(RegistryError, match="version 7 is registered when version 6 is next"):
            after(stands_at(2), Event("registered", 7), 8)


def test_an_unmoved_alias_points_to_the_reference() -> None:
    assert dataclasses.astuple(State().alias("production")) == (0, 0, (), False)
