"""One Triton program a position: the same results as `pipeline.risk.positions` from one kernel, for GPUs.

A position's two rows of logits stay in the GPU's cache while the program passes over them: for both normalisers,
for mean and range of L, a dozen times for the VaR, and once for the gradient, which it writes over the policy's
logits. Mean and CVaR in float32 are covered; everything else takes the plain path. The kernel is never required:
`usable` compares it with the plain path on the device at hand and takes whichever is right and faster there.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.risk.block import Positions, Weights
from pipeline.risk.law import TIE
from pipeline.risk.measures import Measure

COVERED = ("mean", "cvar")
_BLOCK = 4096


@functools.cache
def is_installed() -> bool:
    """Whether Triton can be imported (it comes with CUDA builds of PyTorch)."""
    return importlib.util.find_spec("triton") is not None


def reduce_rows(
    logits: Tensor,
    ref_logits: Tensor,
    labels: Tensor,
    measure: Measure,
    weights: Weights | None,
) -> Positions:
    """Reduce rows of policy and reference logits ``[n, V]`` (float32, contiguous rows).

    ``weights`` are those of logps, kl and risk (``[n]``, None is none): with them the policy's logits are
    overwritten with the gradient of the weighted sum.
    """
    kernel = _kernel()
    out = logits.new_empty((4, len(logits)))
    logps_weight, kl_weight, risk_weight = (None, None, None) if weights is None else weights
    kernel[(len(logits),)](
        logits,
        ref_logits,
        labels,
        logps_weight,
        kl_weight,
        risk_weight,
        out,
        len(logits),
        logits.stride(0),
        ref_logits.stride(0),
        measure.level,
        HAS_GRADIENT=weights is not None,
        HAS_KL=kl_weight is not None,
        HAS_RISK=risk_weight is not None,
        IS_CVAR=measure.name == "cvar" and measure.level < 1.0,
        TIE_WIDTH=TIE,
        VOCAB=logits.shape[-1],
        BLOCK=min(_BLOCK, 1 << (logits.shape[-1] - 1).bit_length()),
        num_warps=8,
    )
    return Positions(*out.unbind())


def usable(logits: Tensor, measure: Measure, plain: Callable[..., Any]) -> bool:
    """Whether the kernel is to be used for such logits: it covers the case, agrees with ``plain`` (called as
    `reduce_rows`) on this device, and is faster there. Decided once for a device, measure and vocabulary."""
    if not logits.is_cuda or logits.dtype != torch.float32 or measure.name not in COVERED or not is_installed():
        return False
    return _decide(logits.device, measure, logits.shape[-1], plain)


@functools.cache
def _decide(device: torch.device, measure: Measure, vocab_size: int, plain: Callable[..., Any]) -> bool:
    try:
        plain_rows, plain_s = _sample(device, measure, vocab_size, plain)
        kernel_rows, kernel_s = _sample(device, measure, vocab_size, reduce_rows)
    except Exception:  # a compiler that is missing or too old is no reason to fail: the plain path remains
        return False
    # Row by row in the sum of differences: single entries of a gradient may be far below any fixed tolerance.
    agrees = all(
        bool(((one - two).abs().sum(-1) <= 1e-4 * one.abs().sum(-1) + 1e-5).all())
        for one, two in zip(plain_rows, kernel_rows, strict=True)
    )
    return agrees and kernel_s < plain_s


def _sample(
    device: torch.device, measure: Measure, vocab_size: int, reduce: Callable[..., Any]
) -> tuple[list[Tensor], float]:
    """Results on a fixed sample, ``[n, 1]`` values and ``[n, V]`` gradients, and the best time of five in seconds."""
    generator = torch.Generator(device).manual_seed(0)
    count = 128
    ref = torch.randn(count, vocab_size, generator=generator, device=device) * 3
    pi = ref + torch.randn(count, vocab_size, generator=generator, device=device) * 0.3
    labels = torch.randint(0, vocab_size, (count,), generator=generator, device=device)
    ones = torch.ones(count, device=device)
    seconds: list[float] = []
    results: list[Tensor] = []
    for weights in (None, Weights(ones, ones, -ones), *[Weights(ones, None, -ones)] * 6):
        logits, ref_logits = pi.clone(), ref.clone()
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        rows = reduce(logits, ref_logits, labels, measure, weights)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        if len(seconds) <= 3:
            results += [column.unsqueeze(-1) for column in rows if column is not None]
            results += [] if weights is None else [logits]
    return results, min(seconds[-5:])


@functools.cache
def _kernel() -> Any:
    """The compiled kernel; Triton is imported here and nowhere else."""
    import triton
    import triton.language as tl

    @triton.jit
    def row_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        ref_ptr,
        labels_ptr,
        logps_weight_ptr,
        kl_weight_ptr,
        risk_weight_ptr,
        out_ptr,
        num_rows,
        stride,
        ref_stride,
        level,
        HAS_GRADIENT: tl.constexpr,  # noqa: N803 - Triton's habit for constants
        HAS_KL: tl.constexpr,  # noqa: N803
        HAS_RISK: tl.constexpr,  # noqa: N803
        IS_CVAR: tl.constexpr,  # noqa: N803
        TIE_WIDTH: tl.constexpr,  # noqa: N803
        VOCAB: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        row = tl.program_id(0).to(tl.int64)
        x_ptr = logits_ptr + row * stride
        y_ptr = ref_ptr + row * ref_stride
        lanes = tl.arange(0, BLOCK)
        infinity = float("inf")

        # Log-normalisers of both rows.
        x_top, y_top, x_sum, y_sum = -infinity, -infinity, 0.0, 0.0
        for start in range(0, VOCAB, BLOCK):
            inside = start + lanes < VOCAB
            x = tl.load(x_ptr + start + lanes, mask=inside, other=-infinity)
            y = tl.load(y_ptr + start + lanes, mask=inside, other=-infinity)
            top = tl.maximum(x_top, tl.max(x, 0))
            # Nothing but masked entries so far: -inf - -inf is not a number.
            shift = tl.where(top > -infinity, top, 0.0)
            x_sum = x_sum * tl.exp(x_top - shift) + tl.sum(tl.exp(x - shift), 0)
            x_top = top
            top = tl.maximum(y_top, tl.max(y, 0))
            shift = tl.where(top > -infinity, top, 0.0)
            y_sum = y_sum * tl.exp(y_top - shift) + tl.sum(tl.exp(y - shift), 0)
            y_top = top
        x_norm = x_top + tl.log(x_sum)
        y_norm = y_top + tl.log(y_sum)
        # Logits are subtracted before their normalisers: equal ones then give an L without rounding.
        shift = x_norm - y_norm
        label = tl.load(labels_ptr + row)
        label_logp = tl.load(x_ptr + label) - x_norm
        ref_label_logp = tl.load(y_ptr + label) - y_norm

        # Mean and range of L.
        mean, first, last = 0.0, infinity, -infinity
        for start in range(0, VOCAB, BLOCK):
            inside = start + lanes < VOCAB
            x = tl.load(x_ptr + start + lanes, mask=inside, other=0.0)
            y = tl.load(y_ptr + start + lanes, mask=inside, other=-infinity)
            weighs = y > -infinity
            ratio = tl.where(weighs, (y - x) + shift, 0.0)
            mean += tl.sum(tl.where(weighs, tl.exp(y - y_norm) * ratio, 0.0), 0)
            first = tl.minimum(first, tl.min(tl.where(weighs, ratio, infinity), 0))
            last = tl.maximum(last, tl.max(tl.where(weighs, ratio, -infinity), 0))

        # The VaR is the smallest value with P(L > value) <= level: it lies among the values in [first, last]. Each
        # pass takes the mass above a trial point, and the values next to it on both sides.
        risk = mean
        var, share, tail = mean, 0.0, 1.0
        if IS_CVAR:
            miss_first = -tl.log(level / (1.0 - level)) - 10.0
            miss_last = -tl.log(level / (1.0 - level)) + 10.0
            miss_first = tl.minimum(miss_first, -1.0)
            miss_last = tl.maximum(miss_last, 1.0)
            step = 0
            side = 0
            while (first < last) & (step < 100):
                where = miss_first / (miss_first - miss_last)
                where = tl.minimum(tl.maximum(where, 0.002), 0.998)
                where = tl.where(step % 4 == 3, 0.5, where)
                trial = first + where * (last - first)
                # Rounding may put it on the last value, above which no more is known.
                trial = tl.where(trial < last, trial, first)
                mass, below, beyond = 0.0, -infinity, infinity
                for start in range(0, VOCAB, BLOCK):
                    inside = start + lanes < VOCAB
                    x = tl.load(x_ptr + start + lanes, mask=inside, other=0.0)
                    y = tl.load(y_ptr + start + lanes, mask=inside, other=-infinity)
                    weighs = y > -infinity
                    ratio = tl.where(weighs, (y - x) + shift, 0.0)
                    above = weighs & (ratio > trial)
                    mass += tl.sum(tl.where(above, tl.exp(y - y_norm), 0.0), 0)
                    below = tl.maximum(below, tl.max(tl.where(weighs & (ratio <= trial), ratio, -infinity), 0))
                    beyond = tl.minimum(beyond, tl.min(tl.where(above, ratio, infinity), 0))
                odds = tl.minimum(tl.maximum(mass, 1e-7), 1.0 - 1e-7)
                miss = tl.log((1.0 - odds) / odds) - tl.log((1.0 - level) / level)
                if mass > level:
                    first = beyond
                    miss_first = tl.minimum(miss, -1e-4)
                    miss_last = tl.where(side == 1, miss_last * 0.5, miss_last)
                    side = 1
                else:
                    last = below
                    miss_last = tl.maximum(miss, 1e-4)
                    miss_first = tl.where(side == 2, miss_first * 0.5, miss_first)
                    side = 2
                step += 1
            var = last
            tie = TIE_WIDTH * (1.0 + tl.abs(var))
            above_mass, at_least_mass, excess = 0.0, 0.0, 0.0
            for start in range(0, VOCAB, BLOCK):
                inside = start + lanes < VOCAB
                x = tl.load(x_ptr + start + lanes, mask=inside, other=0.0)
                y = tl.load(y_ptr + start + lanes, mask=inside, other=-infinity)
                weighs = y > -infinity
                ratio = tl.where(weighs, (y - x) + shift, 0.0)
                p = tl.where(weighs, tl.exp(y - y_norm), 0.0)
                above_mass += tl.sum(tl.where(ratio > var + tie, p, 0.0), 0)
                at_least_mass += tl.sum(tl.where(ratio > var - tie, p, 0.0), 0)
                excess += tl.sum(tl.where(ratio > var, p * (ratio - var), 0.0), 0)
            risk = var + excess / level
            tied = at_least_mass - above_mass
            share = tl.where(tied > 0.0, (level - above_mass) / tied, 0.0)
            share = tl.minimum(tl.maximum(share, 0.0), 1.0)
            tail = above_mass + share * tied

        if HAS_GRADIENT:
            on_logps = tl.load(logps_weight_ptr + row)
            on_kl, on_risk = 0.0, 0.0
            if HAS_KL:
                on_kl = tl.load(kl_weight_ptr + row)
            if HAS_RISK:
                on_risk = tl.load(risk_weight_ptr + row)
            tie = TIE_WIDTH * (1.0 + tl.abs(var))
            for start in range(0, VOCAB, BLOCK):
                inside = start + lanes < VOCAB
                x = tl.load(x_ptr + start + lanes, mask=inside, other=0.0)
                y = tl.load(y_ptr + start + lanes, mask=inside, other=-infinity)
                weighs = y > -infinity
                p = tl.where(weighs, tl.exp(y - y_norm), 0.0)
                q = p
                if IS_CVAR:
                    ratio = tl.where(weighs, (y - x) + shift, 0.0)
                    q = tl.where(ratio > var + tie, p, tl.where(ratio > var - tie, share * p, 0.0)) / tail
                gradient = (on_kl + on_risk - on_logps) * tl.exp(x - x_norm) - on_kl * p - on_risk * q
                gradient += tl.where(start + lanes == label, on_logps, 0.0)
                tl.store(x_ptr + start + lanes, gradient, mask=inside)

        tl.store(out_ptr + row, label_logp)
        tl.store(out_ptr + num_rows + row, ref_label_logp)
        tl.store(out_ptr + 2 * num_rows + row, mean)
        tl.store(out_ptr + 3 * num_rows + row, risk)

    return row_kernel
