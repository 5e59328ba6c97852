"""Counts and sums over the pairs of a shard, and over those of a whole cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.records import PairTokens
from pipeline.reference.compress import RoundingError
from pipeline.reference.compute import computed_positions
from pipeline.reference.layout import ShardRow


@dataclass(frozen=True)
class Statistics:
    """Sums, so that those of two shards add up."""

    pairs: int = 0
    response_tokens: int = 0
    """Tokens of chosen and rejected responses, EOS included: positions that are stored."""
    computed_tokens: int = 0
    """Positions that the model computed."""
    separate_tokens: int = 0
    """Positions that it would compute with every response after a prompt of its own."""
    logps: float = 0.0
    """Sum of the log-probabilities (nats) of all responses."""
    chosen_likelier: int = 0
    """Pairs whose chosen response is the likelier one under the reference."""
    lowest_logp: float = 0.0
    """Log-probability (nats) of the least likely response."""
    measured_positions: int = 0
    """8-bit rows: positions on which their error was measured."""
    kl_sum: float = 0.0
    """Over those, the sum of KL(exact, stored), nats."""
    kl_max: float = 0.0
    logp_error_max: float = 0.0
    """Largest change of a realised token's log-probability, nats."""

    def plus(self, other: Statistics) -> Statistics:
        """Of both together."""
        both = {
            field.name: (getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
        }
        folds = {"lowest_logp": min, "kl_max": max, "logp_error_max": max}
        return Statistics(**{name: folds.get(name, _sum)(*pair) for name, pair in both.items()})

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def shard_statistics(
    pairs: Sequence[PairTokens], rows: Sequence[ShardRow], error: RoundingError | None, packed: bool
) -> Statistics:
    """Of one shard's pairs and what was computed for them."""
    return Statistics(
        pairs=len(pairs),
        response_tokens=sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs),
        computed_tokens=sum(computed_positions(pair, packed) for pair in pairs),
        separate_tokens=sum(computed_positions(pair, False) for pair in pairs),
        logps=sum(logp for row in rows for logp in row.logps),
        chosen_likelier=sum(row.logps[0] > row.logps[1] for row in rows),
        lowest_logp=min(logp for row in rows for logp in row.logps),
        measured_positions=error.positions if error else 0,
        kl_sum=error.kl_sum if error else 0.0,
        kl_max=error.kl_max if error else 0.0,
        logp_error_max=error.logp_max if error else 0.0,
    )


def copied_statistics(pairs: Sequence[PairTokens], rows: Sequence[ShardRow], there: Statistics) -> Statistics:
    """Of rows that were copied out of a shard with the statistics ``there``: their own counts and sums, and the error
    that was measured when the whole shard was computed."""
    packed = there.computed_tokens < there.separate_tokens  # no prompt is empty
    error = None
    if there.measured_positions:
        error = RoundingError(there.measured_positions, there.kl_sum, there.kl_max, there.logp_error_max)
    return shard_statistics(pairs, rows, error, packed)


def _sum(one: Any, other: Any) -> Any:
    return one + other
