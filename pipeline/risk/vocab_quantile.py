"""The rule that the paper's published code applies where the paper says CVaR, under a name of its own.

It takes the plain, unweighted (1 - level) quantile of L over the vocabulary axis, keeps the entries above it and
sums pi_ref * L over them, not divided by the level. Probabilities play no part in choosing the tail, so it is
not CVaR, nor a risk measure of L's law: adding tokens that are never produced changes it. By default that code
first cuts the vocabulary axis in two halves (naming them chosen and rejected) and takes a quantile in each. It is
here so that published runs can be repeated and compared.
"""

from __future__ import annotations

import torch

from pipeline.risk.law import Law, Risk


def vocab_quantile(law: Law, level: float, parts: int) -> Risk:
    """sum of pi_ref * L over the entries with L above the unweighted quantile; q = pi_ref there, and 0 elsewhere.

    ``parts`` = 2 applies it to each half of the vocabulary. Entries the reference never produces are not counted.
    """
    middle = law.ratio.shape[-1] // 2
    bounds = [slice(None)] if parts == 1 or not middle else [slice(None, middle), slice(middle, None)]
    q = torch.zeros_like(law.p)
    for part in bounds:
        ratio = law.ratio[:, part].masked_fill(law.log_p[:, part] == -torch.inf, -torch.inf)
        num_counted = (ratio > -torch.inf).sum(-1)
        # Linear interpolation between two order statistics, with a strict comparison after it, keeps what is
        # above the lower one.
        below = ((1 - level) * (num_counted - 1).clamp_min(0)).floor().long()
        rank = (ratio.shape[-1] - num_counted + below).clamp_max(ratio.shape[-1] - 1)
        edge = ratio.sort(-1).values.gather(-1, rank.unsqueeze(-1))
        q[:, part] = law.p[:, part] * (ratio > edge)
    return Risk((q * law.ratio).sum(-1), q)
