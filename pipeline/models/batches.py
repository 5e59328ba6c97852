"""How rows are batched for a forward pass: a pure function of their lengths, never of the pool of actors.

The numbers a model computes depend in their last bits on the shape of its batch, so equal rows must be
batched equally wherever and whenever they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped by similar length so that (rows * longest row) stays within ``budget`` padded tokens.

    Every position appears once; a row longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # In ascending order the newest row is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * lengths[position] <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
