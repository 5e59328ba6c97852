"""Which rows are trained on, and which form which batch.

A batch is a pure function of (seed, epoch, index), never of worker count or history. A run that is resumed, or that
goes on with another number of workers, therefore sees exactly the batches that an uninterrupted run would have seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.records import PairTokens


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches in one epoch; a short last one counts."""
    return math.ceil(num_rows / batch_size)


def global_batch(num_rows: int, batch_size: int, seed: int, epoch: int, index: int) -> list[int]:
    """Row positions of batch ``index`` (from 0) of ``epoch`` (from 0), over all workers.

    Within an epoch the batches are a partition of all rows; the last is shorter when ``batch_size`` does not
    divide ``num_rows``. Raises IndexError for a batch that the epoch does not have.
    """
    if not 0 <= index < num_batches(num_rows, batch_size):
        raise IndexError(f"batch {index} of {num_batches(num_rows, batch_size)}")
    batch = _permutation(num_rows, seed, epoch)[index * batch_size : (index + 1) * batch_size]
    return [int(row) for row in batch]


def share_of_groups(pairs: Sequence[PairTokens], fraction: float) -> list[PairTokens]:
    """The pairs of a share of their groups, whole groups, at least one; in their order.

    The hash of a group's name decides, so that a smaller share is part of a larger one.
    """
    groups = sorted({pair.group for pair in pairs}, key=lambda name: hashlib.sha256(name.encode()).digest())
    kept = set(groups[: max(1, round(fraction * len(groups)))])
    return [pair for pair in pairs if pair.group in kept]


def shard(batch: list[int], rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """The micro-batches of one worker, at most ``micro_batch_size`` rows each; None is padding of weight zero.

    Every worker gets the same number of micro-batches and all have the same length (collectives inside the
    forward pass need that), with as little padding as this allows: the length is the smallest that keeps the
    number of micro-batches. Over all workers every row of the batch appears exactly once. A micro-batch may
    be padding only (more workers than rows).

    Example: ``shard([5, 3, 8], rank=1, world_size=2, micro_batch_size=4) == [[3, None]]``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a group of {world_size}")
    rows_per_rank = math.ceil(len(batch) / world_size)
    if rows_per_rank == 0:
        return []
    count = math.ceil(rows_per_rank / micro_batch_size)
    length = math.ceil(rows_per_rank / count)
    own: list[int | None] = [*batch[rank::world_size]]
    own += [None] * (count * length - len(own))
    # Strided, so that padding is spread over the micro-batches instead of filling the last one.
    return [own[start::count] for start in range(count)]


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # numpy promises that a bit generator's raw stream never changes, but not Generator.permutation: sorting
    # raw draws keeps the order of a run the same over numpy versions.
    draws = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    order = np.argsort(draws, kind="stable")
    order.setflags(write=False)
    return order
