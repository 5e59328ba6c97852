from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import require_splits, split_of, take
from pipeline.errors import DataError

GROUPS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SEEDS = st.integers(0, 2**40)
FRACTIONS = st.floats(0.01, 0.49)


@dataclass(frozen=True)
class Row:
    row_id: str


@settings(deadline=None)
@given(GROUPS, SEEDS, FRACTIONS, FRACTIONS, FRACTIONS)
def test_a_larger_test_fraction_only_moves_groups_into_test(
    group: str, seed: int, validation: float, one: float, two: float
) -> None:
    smaller, larger = sorted((one, two))
    if split_of(group, seed, validation, smaller) == "test":
        assert split_of(group, seed, validation, larger) == "test"


@settings(deadline=None)
@given(GROUPS, SEEDS, FRACTIONS, FRACTIONS)
def test_swapping_held_out_shares_keeps_train(group: str, seed: int, validation: float, test: float) -> None:
    held_out = validation + test
    assert (split_of(group, seed, held_out / 2, held_out / 2) == "train") == (
        split_of(group, seed, held_out / 4, held_out / 4 * 3) == "train"
    )


def test_shares_are_close_to_the_fractions() -> None:
    counts = Counter(split_of(str(group), 3, 0.1, 0.2) for group in range(5000))
    assert abs(counts["test"] / 5000 - 0.2) < 0.03
    assert abs(counts["validation"] / 5000 - 0.1) < 0.03


def test_known_splits() -> None:
    """sha256 starts with 3258 (0.197 of 2**16) for "0:abandon", 49f4 (0.289) for "0:f", 9df3 (0.617) for "0:a"."""
    assert [split_of(group, 0, 0.1, 0.2) for group in ("abandon", "f", "a")] == ["test", "validation", "train"]
    assert [split_of(str(n), 1, 0.1, 0.2) for n in range(40)] != [split_of(str(n), 2, 0.1, 0.2) for n in range(40)]


@settings(deadline=None)
@given(st.sets(st.text("abc", min_size=1)), st.randoms(), st.integers(1, 10), st.integers(1, 10))
def test_take_ignores_row_order_and_nests(ids: set[str], rng: random.Random, one: int, two: int) -> None:
    rows = [Row(row_id) for row_id in sorted(ids)]
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    smaller, larger = sorted((one, two))
    assert take(rows, smaller) == take(shuffled, smaller) == take(rows, larger)[:smaller]
    assert sorted(take(rows, None), key=lambda row: row.row_id) == rows
    assert len(take(rows, one)) == min(one, len(rows))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"no pair is left for validation and test .*train 3 pairs in 1 groups.*seed"):
        require_splits({"train": 3, "validation": 0, "test": 0}, {"train": 1, "validation": 0, "test": 0}, "here")
    require_splits(dict.fromkeys(("train", "validation", "test"), 1), dict.fromkeys(("train",), 1), "here")
