"""Hidden states in 8 bits: every 64 numbers of a row share a scale, their largest magnitude over 127.

Rounding is to the nearest, so a number is off by at most half a scale. What that does to the distributions is
measured on real positions (`rounding_error`) and kept beside the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.risk.head import Head, Projection

GROUP = 64
"""Numbers that share a scale."""

_EVERY = 16
"""One position in so many is measured."""


@dataclass(frozen=True)
class RoundingError:
    """What 8-bit rows do to the reference's distributions, over the measured positions."""

    positions: int
    kl_sum: float
    """Sum of KL(exact, stored), nats."""
    kl_max: float
    logp_max: float
    """Largest change of the realised token's log-probability, nats."""


def compress(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``[N, d]`` -> int8 ``[N, d]`` and float32 scales ``[N, ceil(d / 64)]``."""
    count, width = rows.shape
    groups = F.pad(rows.float(), (0, -width % GROUP)).view(count, -1, GROUP)
    scales = groups.abs().amax(-1) / 127
    values = (groups / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)).round_()
    return values.view(count, -1)[:, :width].to(torch.int8).contiguous(), scales


def expand(values: Tensor, scales: Tensor) -> Tensor:
    """float32 ``[N, d]`` from what `compress` gave."""
    width = values.shape[1]
    return values.float() * scales.repeat_interleave(GROUP, 1)[:, :width]


def rounding_error(rows: Tensor, head: Head, labels: Tensor) -> RoundingError:
    """Measure on every 16th of the rows ``[N, d]``, which predict ``labels [N]``."""
    exact, label = rows[::_EVERY], labels[::_EVERY].unsqueeze(-1)
    stored = expand(*compress(exact)).to(rows.dtype)
    projection = Projection(head, len(exact))
    before = projection.logits(exact).log_softmax(-1)
    after = projection.logits(stored).log_softmax(-1)
    kl = (before.exp() * (before - after)).masked_fill_(before == -torch.inf, 0.0).sum(-1)
    logps = (before.gather(-1, label) - after.gather(-1, label)).abs()
    return RoundingError(len(exact), float(kl.sum()), float(kl.max()), float(logps.max()))
