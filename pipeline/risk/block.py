"""What goes into the reduction of a block of positions, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

NO_TOKEN = -1
"""In a record's ids: this position has fewer tokens than others. Never its first one."""


@dataclass(frozen=True)
class TopKBlock:
    """The reference's k most likely tokens at n positions and, as one more symbol, all the rest."""

    ids: Tensor
    """``[n, k]`` token ids, all different within a row, or `NO_TOKEN` (with -inf for its log-probability)."""
    log_probs: Tensor
    """``[n, k]``."""
    log_rest: Tensor
    """``[n]`` log of the mass outside; -inf when there is none."""


class Weights(NamedTuple):
    """How much of each gradient is wanted, ``[n]`` each; None is none at all."""

    logps: Tensor
    kl: Tensor | None
    risk: Tensor | None

    def slice(self, rows: slice) -> Weights:
        kl, risk = (None if column is None else column[rows] for column in (self.kl, self.risk))
        return Weights(self.logps[rows], kl, risk)


class Positions(NamedTuple):
    """Per position, ``[n]``, nats. ``ref_logps`` is None with a top-k record (it holds them itself); ``kl`` and
    ``risk`` are None without a reference."""

    logps: Tensor
    ref_logps: Tensor | None
    kl: Tensor | None
    risk: Tensor | None
