from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import global_batch, num_batches, shard, share_of_groups
from pipeline.records import PairTokens

ROWS, SIZE, SEED = st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**70)


@settings(deadline=None)
@given(ROWS, SIZE, SEED, st.integers(0, 5))
def test_an_epoch_is_a_partition_of_all_rows(num_rows: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = [
        global_batch(num_rows, batch_size, seed, epoch, index) for index in range(num_batches(num_rows, batch_size))
    ]
    assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) == num_rows - batch_size * (len(batches) - 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), unique=True, max_size=60), st.integers(1, 7), st.integers(1, 9))
def test_shards_hold_every_row_once_in_equal_shapes(batch: list[int], world_size: int, micro: int) -> None:
    shards = [shard(batch, rank, world_size, micro) for rank in range(world_size)]
    rows = [row for micro_batches in shards for one in micro_batches for row in one if row is not None]
    assert sorted(rows) == sorted(batch)
    assert len({len(micro_batches) for micro_batches in shards}) == 1
    lengths = {len(one) for micro_batches in shards for one in micro_batches}
    assert len(lengths) <= 1
    assert all(0 < length <= micro for length in lengths)
    # No more forward passes than the batch needs, and less padding than one more row a micro-batch would take.
    per_rank = -(-len(batch) // world_size)
    assert len(shards[0]) == -(-per_rank // micro)
    slots = sum(len(one) for one in shards[0])
    assert per_rank <= slots < per_rank + max(len(shards[0]), 1)


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = global_batch(1000, 16, 7, 0, 3)
    assert first == global_batch(1000, 16, 7, 0, 3)
    assert first != global_batch(1000, 16, 8, 0, 3)
    assert first != global_batch(1000, 16, 7, 1, 3)


def test_order_is_the_same_in_another_process() -> None:
    code = "from pipeline.data.order import global_batch; print(global_batch(50, 9, 3, 1, 2))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(global_batch(50, 9, 3, 1, 2))


def test_known_order() -> None:
    """A golden value: a change of this order silently changes what a resumed run trains on."""
    assert global_batch(10, 4, 0, 0, 0) == [0, 8, 9, 3]


def test_faults() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            global_batch(10, 4, 0, 0, index)
    with pytest.raises(ValueError, match="rank 2 is not in a group of 2"):
        shard([1], 2, 2, 1)
    assert shard([], 0, 2, 4) == []


GROUPS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40)


@given(GROUPS, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_share_takes_whole_groups_and_a_smaller_one_is_part_of_a_larger(
    names: list[str], one: float, other: float
) -> None:
    pairs = [PairTokens(str(number), name, [], [], [], "") for number, name in enumerate(names)]
    small, large = (share_of_groups(pairs, share) for share in sorted((one, other)))
    for share, found in ((min(one, other), small), (max(one, other), large)):
        groups = {pair.group for pair in found}
        assert len(groups) == max(1, round(share * len(set(names))))
        assert found == [pair for pair in pairs if pair.group in groups]
    assert {pair.row_id for pair in small} <= {pair.row_id for pair in large}
    assert share_of_groups(pairs[::-1], one) == share_of_groups(pairs, one)[::-1]
    assert share_of_groups(pairs, 1.0) == pairs
