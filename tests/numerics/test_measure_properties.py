"""What every risk measure, or every one of a kind, satisfies: order, neutrality, coherence, and the start of training.

The order. With tail mass u in (0, 1]: max L >= EVaR_u >= CVaR_u >= E[L] = KL >= 0, each falling in u and equal to
the mean at u = 1 (Ahmadi-Javid 2012); entropic risk rises from the mean to the maximum with its level.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.catalogue import MEASURES
from pipeline.risk.law import Law
from pipeline.risk.measures import Measure

COHERENT = [
    Measure("mean"),
    Measure("cvar", 0.05),
    Measure("cvar", 0.6),
    Measure("worst_case"),
    Measure("mean_cvar", 0.1, 0.3),
    Measure("evar", 0.1),
    Measure("evar", 0.9),
    Measure("wang", 0.7),
    Measure("proportional_hazard", 0.4),
]
RISK_MEASURES = [*COHERENT, Measure("erm", 0.01), Measure("erm", 1.0), Measure("erm", 8.0)]
assert {measure.name for measure in RISK_MEASURES} == {name for name, info in MEASURES.items() if info.is_risk_measure}

LADDERS = {
    "cvar": [1e-4, 0.01, 0.1, 0.5, 0.97, 1.0],
    "mean_cvar": [1e-4, 0.01, 0.1, 0.5, 0.97, 1.0],
    "evar": [1e-4, 0.01, 0.1, 0.5, 0.97, 1.0],
    "proportional_hazard": [0.01, 0.1, 0.5, 0.97, 1.0],
    "erm": [50.0, 5.0, 1.0, 0.1, 1e-3, 1e-7],
    "wang": [5.0, 2.0, 1.0, 0.2, 0.0],
}
"""Levels from the most averse to the neutral one."""

few = settings(max_examples=30, deadline=None)


@st.composite
def log_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[4, V]`` of a reference and a policy in float64; now and then of whole logits (ties), or
    with entries that the reference never produces."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.integers(2, 257))
    ref, step = torch.randn(2, 4, size, generator=generator, dtype=torch.float64)
    ref = ref * draw(st.floats(0.0, 8.0))
    pi = ref + step * draw(st.floats(1e-4, 5.0))
    if draw(st.booleans()):
        ref, pi = ref.round(), pi.round()
    if draw(st.booleans()):
        masked = torch.rand(4, size, generator=generator) < 0.3
        masked[:, 0] = False
        ref = ref.masked_fill(masked, -torch.inf)
    return ref.log_softmax(-1), pi.log_softmax(-1)


def slack(*values: Tensor) -> Tensor:
    return 1e-9 * (1 + torch.stack(values).abs().amax(0))


def assert_falls(chain: list[Tensor]) -> None:
    for above, below in pairwise(chain):
        assert (above >= below - slack(above, below)).all()


@pytest.mark.parametrize("name", list(LADDERS))
@few
@given(logs=log_pairs())
def test_aversion_raises_the_value_from_kl_to_the_worst_case(name: str, logs: tuple[Tensor, Tensor]) -> None:
    kl, worst = (Measure(end)(*logs).value for end in ("mean", "worst_case"))
    values = [Measure(name, level)(*logs).value for level in LADDERS[name]]
    assert_falls([worst, *values, kl, torch.zeros_like(kl)])
    # The level 1e-7 of an entropic risk is neutral up to 1e-7 times half the variance.
    neutral = 1e-5 * (1 + worst) if name == "erm" else slack(kl, worst)
    assert ((values[-1] - kl).abs() <= neutral).all()


@few
@given(logs=log_pairs(), level=st.floats(1e-4, 1.0), weight=st.floats(0.0, 1.0))
def test_evar_bounds_cvar_bounds_the_mixture(logs: tuple[Tensor, Tensor], level: float, weight: float) -> None:
    names = ("worst_case", "evar", "cvar", "mean_cvar", "mean")
    assert_falls([Measure(name, level, weight)(*logs).value for name in names])


@few
@given(logs=log_pairs(), level=st.floats(1e-4, 1.0))
def test_the_weight_runs_from_the_mean_to_cvar(logs: tuple[Tensor, Tensor], level: float) -> None:
    mean, cvar = Measure("mean")(*logs), Measure("cvar", level)(*logs)
    for weight, end in ((0.0, mean), (1.0, cvar)):
        mixture = Measure("mean_cvar", level, weight)(*logs)
        assert torch.allclose(mixture.value, end.value, rtol=1e-9, atol=1e-12)
        assert torch.allclose(mixture.q, end.q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measure", RISK_MEASURES, ids=lambda m: m.label)
@few
@given(logs=log_pairs(), cash=st.floats(-50.0, 50.0), seed=st.integers(0, 10**6))
def test_cash_additive_and_monotone(measure: Measure, logs: tuple[Tensor, Tensor], cash: float, seed: int) -> None:
    """Phi(L + c) = Phi(L) + c, and a loss that is nowhere smaller is not less risky."""
    law = Law.between(*logs)
    value = measure.of(law).value
    moved = measure.of(Law(law.ratio + cash, law.log_p)).value
    scale = 1e-9 * (1 + abs(cash) + law.ratio.abs().amax(-1)) / min(1.0, measure.level)
    assert ((moved - value - cash).abs() <= scale).all()
    extra = torch.rand(law.ratio.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert (measure.of(Law(law.ratio + extra, law.log_p)).value >= value - scale).all()


@pytest.mark.parametrize("measure", COHERENT, ids=lambda m: m.label)
@few
@given(logs=log_pairs(), factor=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_coherent(measure: Measure, logs: tuple[Tensor, Tensor], factor: float, seed: int) -> None:
    """Positively homogeneous, and subadditive: diversification never adds risk (Artzner et al. 1999)."""
    law = Law.between(*logs)
    value = measure.of(law).value
    scaled = measure.of(Law(law.ratio * factor, law.log_p)).value
    largest = law.ratio.abs().amax(-1)
    assert ((scaled - factor * value).abs() <= 1e-9 * factor * (1e-3 + largest)).all()
    other = 3 * torch.randn(law.ratio.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    together = measure.of(Law(law.ratio + other, law.log_p)).value
    apart = value + measure.of(Law(other, law.log_p)).value
    assert (together <= apart + 1e-9 * (1 + largest)).all()


@pytest.mark.parametrize("measure", RISK_MEASURES, ids=lambda m: m.label)
@few
@given(logs=log_pairs(), seed=st.integers(0, 10**6))
def test_a_law_is_all_that_counts(measure: Measure, logs: tuple[Tensor, Tensor], seed: int) -> None:
    """The order of the vocabulary does not matter, nor does an entry split in two, nor one that is never produced."""
    law = Law.between(*logs)
    value = measure.of(law).value
    order = torch.randperm(law.ratio.shape[-1], generator=torch.Generator().manual_seed(seed))
    permuted = Law(law.ratio[:, order], law.log_p[:, order])
    half = torch.tensor(0.5, dtype=torch.float64).log()
    split = Law(law.ratio.repeat(1, 2), law.log_p.repeat(1, 2) + half)
    never = torch.full_like(law.log_p[:, :2], -torch.inf)
    wider = Law(torch.cat([law.ratio, 0 * never.exp() + 99.0], -1), torch.cat([law.log_p, never], -1))
    for same in (permuted, split, wider):
        assert torch.allclose(measure.of(same).value, value, rtol=1e-8, atol=1e-10)
    assert (measure.of(wider).q[:, -2:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("measure", RISK_MEASURES, ids=lambda m: m.label)
@few
@given(logs=log_pairs(), shift=st.floats(-20.0, 20.0), by_log=st.booleans())
def test_at_the_reference_q_is_the_reference(
    measure: Measure, dtype: torch.dtype, logs: tuple[Tensor, Tensor], shift: float, by_log: bool
) -> None:
    """At pi = pi_ref all of L is tied and the convention asks for q = pi_ref: no tail picked by rounding.

    The policy's log-probabilities come by another route than the reference's: through logits that are ``shift``
    higher, or as logarithms of probabilities in float64.
    """
    log_ref = logs[0].to(dtype)
    if by_log:
        log_pi = log_ref.double().exp().log().to(dtype).masked_fill(log_ref == -torch.inf, -torch.inf)
    else:
        log_pi = (log_ref + shift).log_softmax(-1)
    risk = measure(log_ref, log_pi)
    close = 2e-5 if dtype == torch.float32 else 1e-10
    assert risk.value.abs().max() <= close
    assert (risk.q - log_ref.exp()).abs().max() <= close
    assert (risk.q[log_ref == -torch.inf] == 0).all()
