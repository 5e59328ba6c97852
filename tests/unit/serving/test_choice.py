"""Which version answers, and which are kept."""

from __future__ import annotations

import pytest

from pipeline.release.state import AliasState, State
from pipeline.serving.choice import Choice, UnknownModelError, choose, names, share_of, wanted
from pipeline.serving.options import GuardOptions

STATE = State(
    registered_by=(1, 2, 3, 4, 5),
    aliases={
        "production": AliasState(3, 9, (0, 1, 2)),
        "candidate": AliasState(4, 10, (0,)),
        "canary": AliasState(2, 11, (0,)),
    },
)


def test_the_most_important_are_kept() -> None:
    options = GuardOptions(canary="candidate=0.1")
    assert wanted(STATE, options) == (3, 4, 0, 2)
    assert wanted(STATE, GuardOptions()) == (3, 0, 2, 4)
    assert wanted(STATE, GuardOptions(preload=False)) == (3, 0, 2)
    assert wanted(STATE, GuardOptions(max_loaded=2)) == (3, 0)
    assert wanted(State((1,)), options) == (0,), "a new line: everything is the reference"


def test_after_a_roll_back_the_next_one_back_is_kept() -> None:
    """A repeated roll-back stays, so nothing but production itself is ahead."""
    state = State((1, 2, 3), aliases={"production": AliasState(1, 9, (0,), rolled_back=True)})
    assert wanted(state, GuardOptions()) == (1, 0)


def test_what_was_removed_is_not_kept() -> None:
    state = State(STATE.registered_by, frozenset({2}), STATE.aliases)
    assert wanted(state, GuardOptions()) == (3, 0, 1, 4)
    assert "canary" not in names(state, GuardOptions(canary="canary=0.5"))
    assert choose(state, None, "k", GuardOptions(canary="canary=1"), "ab") == Choice(3, "production")


def test_a_name_is_an_alias_that_is_served_or_a_version_that_is_kept() -> None:
    options = GuardOptions()
    assert choose(STATE, None, "k", options, "ab") == Choice(3, "production")
    assert choose(STATE, "ab/2", "k", options, "ab") == Choice(2, "2")
    assert choose(STATE, "reference", "k", options, "ab") == Choice(0, "reference")
    for unknown in ("1", "cd/2", "candidate", "", "-1", "٣"):
        if unknown:
            with pytest.raises(UnknownModelError, match="there are production, reference, 0, 2, 3, 4"):
                choose(STATE, unknown, "k", options, "ab")


def test_a_canary_gets_its_share_of_keys() -> None:
    options = GuardOptions(canary="candidate=0.1")
    versions = [choose(STATE, None, f"user {n}", options, "ab").version for n in range(4000)]
    assert set(versions) == {3, 4}
    assert 320 <= versions.count(4) <= 480, "400 are expected; four standard deviations are 76"
    assert versions == [choose(STATE, "production", f"user {n}", options, "ab").version for n in range(4000)]
    assert {choose(STATE, "3", f"user {n}", options, "ab").version for n in range(100)} == {3}, "who names one gets it"


def test_an_alias_that_was_never_moved_is_no_canary() -> None:
    state = State((1, 2), aliases={"production": AliasState(1, 3, (0,))})
    assert choose(state, None, "k", GuardOptions(canary="candidate=1"), "ab").version == 1


def test_shares_for_different_purposes_are_independent() -> None:
    both = sum(share_of(str(n), "canary") < 0.5 and share_of(str(n), "log") < 0.5 for n in range(4000))
    assert 890 <= both <= 1110, "1000 are expected; four standard deviations are 110"
