"""The search for the VaR: few passes over a real vocabulary, the sorted definition's result, no law too hard."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pipeline.risk.cvar as search
from pipeline.risk.law import Law
from pipeline.risk.measures import Measure

sys.path.insert(0, str(Path(__file__).parent))
import exact

VOCAB, ROWS = 49_152, 10
NOT_STEPS = 4
"""Comparisons that are no steps of the search: two for what is left inside, two for q."""
LEVELS = [0.99, 0.95, 0.9, 0.5, 0.1, 0.01, 0.001]


def dense(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ref = torch.randn(ROWS, VOCAB, generator=generator)
    return ref, ref + 0.5 * torch.randn(ROWS, VOCAB, generator=generator)


def peaked(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A few entries hold all mass, as most positions of a trained model have it."""
    ref = 6 * torch.randn(ROWS, VOCAB, generator=generator)
    return ref, ref + torch.randn(ROWS, VOCAB, generator=generator)


def zipf(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ref = -1.1 * torch.arange(1, VOCAB + 1).float().log().expand(ROWS, VOCAB)
    return ref, ref + 0.3 * torch.randn(ROWS, VOCAB, generator=generator)


class Passes:
    """Counts the comparisons of the whole vocabulary with one number a row."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        greater = torch.gt

        def counting(*arguments: object, **options: object) -> Tensor:
            self.count += 1
            return greater(*arguments, **options)

        monkeypatch.setattr(torch, "gt", counting)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("draw", [dense, peaked, zipf], ids=lambda draw: draw.__name__)
def test_few_passes_and_the_sorted_result(monkeypatch: pytest.MonkeyPatch, draw: object, level: float) -> None:
    ref, pi = draw(torch.Generator().manual_seed(0))
    law = Law.between(ref.log_softmax(-1), pi.log_softmax(-1))
    passes = Passes(monkeypatch)
    risk = Measure("cvar", level).of(law)
    assert passes.count - NOT_STEPS <= 12
    exactly = exact.law_between(ref.double().numpy(), pi.double().numpy())
    want = exact.cvar(exactly, level, np.full((ROWS, 1), 1e-5))
    assert np.allclose(risk.value.numpy(), want.value, rtol=1e-4, atol=2e-5)
    q = risk.q.double().numpy()
    assert np.abs(q.sum(-1) - 1).max() <= 1e-5
    assert (q <= exactly.p / level * (1 + 1e-4) + 1e-9).all()
    assert np.abs((q * exactly.ratio).sum(-1) - want.value).max() <= 5e-5


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("level", [0.99, 0.5, 0.01])
def test_a_crowd_of_equal_values(monkeypatch: pytest.MonkeyPatch, share: float, level: float) -> None:
    """Exactly tied entries, at the VaR or beside it: no step can split them, and none has to."""
    generator = torch.Generator().manual_seed(1)
    ratio = torch.randn(ROWS, VOCAB, generator=generator).double()
    for row, at in enumerate(torch.linspace(-2, 3, ROWS)):
        ratio[row, torch.rand(VOCAB, generator=generator) < share] = float(at)
    log_p = torch.randn(ROWS, VOCAB, generator=generator).double().log_softmax(-1)
    passes = Passes(monkeypatch)
    risk = Measure("cvar", level).of(Law(ratio, log_p))
    assert passes.count - NOT_STEPS < search._MAX_STEPS
    want = exact.cvar(exact.Law(ratio.numpy(), log_p.numpy()), level, np.zeros((ROWS, 1)))
    assert np.allclose(risk.value.numpy(), want.value, rtol=1e-9)
    assert np.allclose(risk.q.numpy()[want.sure], want.q[want.sure], rtol=1e-6, atol=1e-15)


def hard_laws(dtype: torch.dtype) -> dict[str, Tensor]:
    """Values that defeat interpolation: over many orders of magnitude, or with all mass at one end."""
    generator = torch.Generator().manual_seed(2)
    size = (8, 5_000)
    uniform, sign = torch.rand(size, generator=generator), torch.randn(size, generator=generator).sign()
    exponents = torch.linspace(-12, 4, size[1])
    return {
        "orders of magnitude": (10 ** (uniform * 16 - 12) * sign).to(dtype),
        "geometric": (10**exponents).expand(size).to(dtype),
        "geometric below zero": (-(10**exponents)).expand(size).to(dtype),
        "one far outlier": torch.where(torch.arange(size[1]) == 7, 1e4, 1e-3 * uniform).to(dtype),
        "two far clusters": torch.where(uniform < 0.5, -1e4 + uniform, 1e4 + 1e-2 * uniform).to(dtype),
        "cubed Cauchy": (torch.tan(3.14 * (uniform - 0.5)) ** 3).clamp(-1e4, 1e4).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", list(hard_laws(torch.float64)))
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0], ids=["uniform", "soft", "peaked"])
def test_the_bound_on_steps_is_never_met(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, spread: float
) -> None:
    ratio = hard_laws(dtype)[name]
    logits = spread * torch.randn(ratio.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    law = Law(ratio, logits.log_softmax(-1))
    plain = exact.Law(ratio.double().numpy(), exact.log_softmax(law.log_p.double().numpy()))
    relative = 1e-4 if dtype == torch.float32 else 1e-6
    passes = Passes(monkeypatch)
    for level in (0.999, 0.9, 0.5, 0.1, 0.01, 1e-4):
        passes.count = 0
        value = Measure("cvar", level).of(law).value.double().numpy()
        assert passes.count - NOT_STEPS < search._MAX_STEPS
        want = exact.cvar(plain, level, np.zeros((len(ratio), 1))).value
        # Positive and negative parts may cancel: their sizes are what rounding is relative to.
        scale = exact.cvar(plain._replace(ratio=np.abs(plain.ratio)), level, np.zeros((len(ratio), 1))).value
        assert (np.abs(value - want) <= relative * scale + 1e-12).all()
