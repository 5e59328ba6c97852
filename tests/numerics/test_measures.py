"""Risk measures against definitions worked out in float64, and their properties.

By hand, for `cvar`: pi_ref = (0.5, 0.3, 0.2) with L = (0, 1, 2). The upper 0.4 of the mass is the whole atom
at 2 and 0.2 of the atom at 1, so CVaR_0.4 = (0.2 * 2 + 0.2 * 1) / 0.4 = 1.5 and q = (0, 0.5, 0.5). At level 1
it is the mean, 0.7; at level 0.2 and below, 2.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.risk.measures import Measure

LEVELS = {
    "mean": [1.0],
    "cvar": [1e-4, 0.01, 0.1, 0.5, 0.97, 1.0],
    "erm": [1e-3, 0.5, 1.0, 5.0],
    "worst_case": [1.0],
}
ALL = [Measure(name, level) for name, levels in LEVELS.items() for level in levels]


def exact_value(measure: Measure, log_ref: np.ndarray, log_pi: np.ndarray) -> float:
    """The definition for one position, with a sort and the atom at the VaR split by hand."""
    support = log_ref > -np.inf
    ratio, p = (log_ref - log_pi)[support], np.exp(log_ref[support])
    p = p / p.sum()
    if measure.name == "mean":
        return float(p @ ratio)
    if measure.name == "worst_case":
        return float(ratio.max())
    if measure.name == "erm":
        shift = (measure.level * ratio).max()
        return float((shift + math.log(p @ np.exp(measure.level * ratio - shift))) / measure.level)
    left, total = measure.level, 0.0
    for index in np.argsort(-ratio, kind="stable"):
        taken = min(left, p[index])
        total += taken * ratio[index]
        left -= taken
        if left <= 0:
            break
    return float(total / measure.level)


def both(measure: Measure, log_ref: torch.Tensor, log_pi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value, anchor = measure.value(log_ref, log_pi)
    return value, measure.distorted(log_ref, log_pi, anchor)


def random_rows(seed: int, rows: int, vocab: int, spread: float, peak: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ref = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * peak
    pi = ref + torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * spread
    return ref.log_softmax(-1), pi.log_softmax(-1)


def test_cvar_worked_by_hand() -> None:
    log_ref = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    log_pi = log_ref - torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    for level, expected in ((0.4, 1.5), (1.0, 0.7), (0.2, 2.0), (0.05, 2.0)):
        value, _ = both(Measure("cvar", level), log_ref, log_pi)
        assert value.item() == pytest.approx(expected, abs=1e-9)
    _, q = both(Measure("cvar", 0.4), log_ref, log_pi)
    assert torch.allclose(q, torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("measure", ALL, ids=lambda m: m.label)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), vocab=st.integers(2, 257), spread=st.floats(1e-3, 5.0), peak=st.floats(0.0, 6.0))
def test_value_and_certificate(measure: Measure, seed: int, vocab: int, spread: float, peak: float) -> None:
    """The value is the definition's, and q certifies it: a probability vector with <q, L> equal to the value and,
    for CVaR, no entry above pi_ref / level."""
    log_ref, log_pi = random_rows(seed, 4, vocab, spread, peak)
    value, q = both(measure, log_ref, log_pi)
    for row in range(4):
        expected = exact_value(measure, log_ref[row].numpy(), log_pi[row].numpy())
        assert value[row].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    tie = 2e-5 * (1 + (log_ref - log_pi).abs().amax(-1))
    assert (q >= 0).all()
    assert torch.allclose(q.sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-9)
    if measure.name != "erm":  # the value of an entropic risk is <q, L> less an entropy
        assert (((q * (log_ref - log_pi)).sum(-1) - value).abs() <= tie).all()
    if measure.name == "cvar":
        assert (q <= log_ref.exp() / measure.level * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("measure", [m for m in ALL if m.name in ("mean", "erm")], ids=lambda m: m.label)
def test_gradient_is_pi_minus_q(measure: Measure) -> None:
    """Smooth measures: autograd through the value agrees with pi - q at every logit."""
    log_ref, _ = random_rows(3, 5, 50, 1.0, 2.0)
    logits = torch.randn(5, 50, dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(-1)
    value, q = both(measure, log_ref, log_pi)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.allclose(gradient, (log_pi.exp() - q).detach(), atol=1e-10)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_cvar_gradient_is_a_directional_derivative(level: float) -> None:
    """CVaR is smooth almost everywhere: finite differences along random directions agree with <pi - q, v>."""
    torch.manual_seed(0)
    log_ref, _ = random_rows(5, 1, 40, 1.0, 2.0)
    logits = torch.randn(1, 40, dtype=torch.float64)
    measure = Measure("cvar", level)
    _, q = both(measure, log_ref, logits.log_softmax(-1))
    for _ in range(10):
        direction = torch.randn_like(logits)
        step = 1e-6
        ahead, behind = (
            measure.value(log_ref, (logits + sign * step * direction).log_softmax(-1))[0].item() for sign in (1, -1)
        )
        slope = ((logits.softmax(-1) - q) * direction).sum().item()
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, abs=1e-4)


def test_the_tail_has_its_mass_in_single_precision_at_a_large_vocabulary() -> None:
    """No entry of q above pi_ref / level: in one of these rows an atom lies just at the edge of the tie."""
    torch.manual_seed(9)
    log_ref, log_pi = torch.randn(64, 50_000), torch.randn(64, 50_000)
    log_pi = (log_ref + log_pi).log_softmax(-1)
    log_ref = log_ref.log_softmax(-1)
    measure = Measure("cvar", 0.01)
    value, q = both(measure, log_ref, log_pi)
    assert (q <= log_ref.exp() / measure.level * (1 + 1e-4)).all()
    assert torch.allclose((q.double() * (log_ref - log_pi).double()).sum(-1), value.double(), atol=1e-5)


@pytest.mark.parametrize("measure", ALL, ids=lambda m: m.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_reference_q_is_the_reference(measure: Measure, dtype: torch.dtype) -> None:
    """At pi = pi_ref every L is 0, all is tied, and the convention asks for q = pi_ref (no tail by rounding)."""
    log_ref, _ = random_rows(1, 8, 333, 1.0, 3.0)
    log_ref = log_ref.to(dtype)
    # Another route to the same distribution, so that L is rounding noise instead of exactly 0.
    log_pi = (log_ref + 0.7).log_softmax(-1)
    value, q = both(measure, log_ref, log_pi)
    assert value.abs().max() < 2e-5
    assert torch.allclose(q, log_ref.exp(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_of_levels(seed: int) -> None:
    """CVaR falls with its level to KL, ERM rises from KL with its level, and worst_case bounds both."""
    log_ref, log_pi = random_rows(seed, 3, 64, 1.0, 2.0)
    kl = Measure("mean", 1.0).value(log_ref, log_pi)[0]
    worst = Measure("worst_case", 1.0).value(log_ref, log_pi)[0]
    cvar = [Measure("cvar", level).value(log_ref, log_pi)[0] for level in (0.01, 0.1, 0.5, 0.97, 1.0)]
    erm = [Measure("erm", level).value(log_ref, log_pi)[0] for level in (1e-6, 0.5, 1.0, 5.0, 50.0)]
    chain = [worst, *cvar]
    assert all((one >= two - 1e-9).all() for one, two in pairwise(chain))
    chain = [*erm, worst]
    assert all((one <= two + 1e-9).all() for one, two in pairwise(chain))
    assert torch.allclose(cvar[-1], kl)
    assert torch.allclose(erm[0], kl, atol=1e-4)
    assert (kl >= 0).all()


@pytest.mark.parametrize("order", [1.5, 2.0, 6.0])
def test_erm_is_a_renyi_divergence(order: float) -> None:
    log_ref, log_pi = random_rows(2, 4, 30, 1.0, 1.0)
    p, q = log_ref.exp().numpy(), log_pi.exp().numpy()
    renyi = np.log((p**order * q ** (1 - order)).sum(-1)) / (order - 1)
    assert np.allclose(Measure("erm", order - 1).value(log_ref, log_pi)[0].numpy(), renyi)


@pytest.mark.parametrize("measure", ALL, ids=lambda m: m.label)
def test_masked_reference_entries_weigh_nothing(measure: Measure) -> None:
    """An entry the reference never produces changes nothing, whatever the policy says about it."""
    log_ref, log_pi = random_rows(4, 3, 20, 1.0, 1.0)
    wide_ref = torch.cat([log_ref, torch.full((3, 2), -torch.inf, dtype=torch.float64)], -1)
    wide_pi = torch.cat([log_pi, torch.tensor([[-torch.inf, -3.0]] * 3, dtype=torch.float64)], -1)
    value, q = both(measure, log_ref, log_pi)
    wide_value, wide_q = both(measure, wide_ref, wide_pi)
    assert torch.allclose(wide_value, value)
    assert torch.allclose(wide_q[:, :20], q, atol=1e-9)
    assert (wide_q[:, 20:] == 0).all()


@pytest.mark.parametrize("measure", [m for m in ALL if m.level != 1e-3], ids=lambda m: m.label)
def test_extreme_logits_stay_finite(measure: Measure) -> None:
    """Logits of 1e4 in float32, a nearly one-hot reference: finite values, and q a probability vector."""
    torch.manual_seed(0)
    log_ref = (torch.randn(6, 101) * 1e4).log_softmax(-1)
    log_pi = (torch.randn(6, 101) * 1e4).log_softmax(-1)
    value, q = both(measure, log_ref, log_pi)
    assert torch.isfinite(value).all()
    assert torch.allclose(q.sum(-1), torch.ones(6), atol=1e-5)


def test_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="cvar"):
        Measure("var", 0.5)
