"""Risk measures against definitions worked out in float64, their certificates at kinks, and their properties.

By hand, for `cvar`: pi_ref = (0.5, 0.3, 0.2) with L = (0, 1, 2). The upper 0.4 of the mass is the whole atom
at 2 and 0.2 of the atom at 1, so CVaR_0.4 = (0.2 * 2 + 0.2 * 1) / 0.4 = 1.5 and q = (0, 0.5, 0.5). At level 1
it is the mean, 0.7; at level 0.2 and below, 2. The mixture of both with weight 1/4 is 0.75 * 0.7 + 0.25 * 1.5 = 0.9.

For proportional_hazard at level 1/2: tail masses (0.2, 0.5, 1) have square roots (0.4472, 0.7071, 1), so the value
is 2 * 0.4472 + 1 * (0.7071 - 0.4472) = 1.1543. The published code's rule at level 0.5 keeps what lies above the
median entry, which is 1: only 0.2 * 2 = 0.4.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.catalogue import MEASURES
from pipeline.errors import RiskError
from pipeline.risk.law import Law, Risk
from pipeline.risk.measures import Measure

sys.path.insert(0, str(Path(__file__).parent))
import exact
import laws

REL = {torch.float64: 1e-6, torch.float32: 1e-4}
ABS = {torch.float64: 1e-12, torch.float32: 2e-6}
BATCHES, ROWS = 100, 50
"""Batches without and as many with masked entries: 10,000 cases a measure and dtype."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
NAMES = pytest.mark.parametrize("name", list(MEASURES))


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


class Ladder:
    """Holds one measure's answers against the exact ones, batch after batch."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.cases, self.large, self.sure, self.entries = dtype, 0, 0, 0, 0

    def check(self, what: str, measure: Measure, risk: Risk, law: exact.Law, pi: np.ndarray, size: np.ndarray) -> None:
        """``law`` and the policy ``pi [N, V]`` are exact; ``size [N, 1]`` is the largest logit's magnitude."""
        noise = 8 * torch.finfo(self.dtype).eps * size if what != "variable" else np.zeros_like(size)
        absolute = ABS[self.dtype] * size
        want = exact.measure(measure.name, measure.level, measure.weight, law, noise, absolute)
        value, q = numpy(risk.value), numpy(risk.q)
        assert np.isfinite(value).all()
        assert np.isfinite(q).all()
        where = f"{measure.label}, {what}, V={q.shape[-1]}"
        excess = np.abs(value - want.value) - REL[self.dtype] * np.abs(want.value) - absolute[:, 0]
        row = int(np.where(want.value_sure, excess, -np.inf).argmax())
        assert excess[row] <= 0 or not want.value_sure[row], f"{where}, row {row}: {value[row]} for {want.value[row]}"
        gradient, wanted = (one.sum(-1, keepdims=True) * pi - one for one in (q, want.q))
        excess = np.abs(gradient - wanted) - REL[self.dtype] * np.abs(wanted) - absolute
        excess = np.where(want.sure, excess, -np.inf)
        row, entry = np.unravel_index(excess.argmax(), excess.shape)
        assert excess[row, entry] <= 0, f"{where}, [{row}, {entry}]: {gradient[row, entry]} for {wanted[row, entry]}"
        if measure.is_risk_measure:
            check_certificate(where, measure, value, q, law, want, noise, absolute, 1e-9 if self.is_double else 5e-5)
        self.cases += len(value)
        self.large += len(value) * (q.shape[-1] >= 2048)
        self.sure += int(want.sure.sum())
        self.entries += want.sure.size

    @property
    def is_double(self) -> bool:
        return self.dtype == torch.float64


def check_certificate(
    where: str,
    measure: Measure,
    value: np.ndarray,
    q: np.ndarray,
    law: exact.Law,
    want: exact.Exact,
    noise: np.ndarray,
    absolute: np.ndarray,
    slack: float,
) -> None:
    """What holds at kinks too: q is feasible for the dual problem of the measure and attains its value."""
    p, level, weight = law.p, measure.level, measure.weight
    assert (q >= 0).all(), where
    assert (q[~law.support] == 0).all(), where
    assert np.abs(q.sum(-1) - 1).max() <= slack, where
    if measure.name != "erm":  # the value of an entropic risk is <q, L> less an entropy; it has no kinks
        allowed = 1.1 * want.tie + 2 * absolute[:, 0] + noise[:, 0] + slack * np.abs(value)
        assert (np.abs((q * law.ratio).sum(-1) - value) <= allowed).all(), where
    if measure.name == "cvar":
        assert (q <= p / level * (1 + slack) + slack * 1e-3).all(), where
    if measure.name == "mean_cvar":
        assert (q <= ((1 - weight) * p + weight * p / level) * (1 + slack) + slack * 1e-3).all(), where
        assert (q >= (1 - weight) * p * (1 - slack) - slack * 1e-3).all(), where
    if measure.name == "worst_case":
        top = np.where(law.support, law.ratio, -np.inf).max(-1, keepdims=True)
        assert (law.ratio >= top - 1.1 * want.tie[:, None] - noise)[q > 0].all(), where
    if measure.name == "evar":
        divergence = np.where(q > 0, q * (np.log(np.where(q > 0, q, 1.0)) - np.where(q > 0, law.log_p, 0.0)), 0.0)
        assert (divergence.sum(-1) <= -np.log(level) * (1 + 1e-6) + absolute[:, 0]).all(), where
    if measure.name in ("wang", "proportional_hazard"):
        order = exact.descending(law)[0]
        ours, exactly = (np.take_along_axis(one, order, -1).cumsum(-1) for one in (q, want.q))
        assert (np.abs(ours - exactly) <= slack)[exact.clear_gaps(law, noise)].all(), where


def largest(*logits: np.ndarray) -> np.ndarray:
    """1 + the largest finite magnitude in each row, ``[N, 1]``."""
    return 1 + np.stack([np.where(np.isfinite(one), np.abs(one), 0.0).max(-1, keepdims=True) for one in logits]).max(0)


def draw_measure(rng: np.random.Generator, name: str, batch: laws.Batch) -> Measure:
    level = laws.draw_level(rng, name, batch)
    return Measure(name, level if MEASURES[name].level is not None else 1.0, float(rng.random()))


@NAMES
@DTYPES
def test_value_gradient_and_certificate(name: str, dtype: torch.dtype) -> None:
    """10,000 random and adversarial pairs of logits."""
    ladder, rng = Ladder(dtype), np.random.default_rng(3)
    for batch in chain(laws.batches(1, BATCHES, ROWS), laws.masked_batches(2, BATCHES, ROWS)):
        measure = draw_measure(rng, name, batch)
        ref, pi = (torch.from_numpy(np.ascontiguousarray(one)).to(dtype) for one in (batch.ref, batch.pi))
        risk = measure(ref.log_softmax(-1), pi.log_softmax(-1))
        law = exact.law_between(numpy(ref), numpy(pi))
        policy = np.exp(exact.log_softmax(numpy(pi)))
        ladder.check(batch.kind, measure, risk, law, policy, largest(numpy(ref), numpy(pi)))
    assert ladder.cases == 10_000
    assert ladder.large >= 300
    # Kinks are no excuse for most entries, but for evar, where float32 leaves few laws that its tilt cannot feel.
    assert ladder.sure >= (0.1 if name == "evar" else 0.5) * ladder.entries


@NAMES
@DTYPES
def test_random_variables_with_exact_ties(name: str, dtype: torch.dtype) -> None:
    """Values that are the same to the last bit, all of them or in large groups; rewards are such variables."""
    ladder, rng = Ladder(dtype), np.random.default_rng(4)
    for batch in chain(laws.batches(5, 40, 20), laws.masked_batches(6, 40, 20)):
        measure = draw_measure(rng, name, batch)
        num_values = rng.choice([1, 2, 7, 1000])
        ratio = rng.integers(0, num_values, batch.ref.shape) / 8 - rng.choice([0.0, 3.0, 100.0])
        log_p = torch.from_numpy(np.ascontiguousarray(batch.ref)).to(dtype).log_softmax(-1)
        ratio = np.where(np.isneginf(batch.ref), 0.0, ratio)
        risk = measure.of(Law(torch.from_numpy(ratio).to(dtype), log_p))
        law = exact.Law(ratio, exact.log_softmax(numpy(log_p)))
        ladder.check("variable", measure, risk, law, np.exp(law.log_p), largest(numpy(log_p), ratio))
    assert ladder.sure >= (0.5 if name == "evar" else 0.9) * ladder.entries


HAND = [
    (Measure("mean"), 0.7),
    (Measure("cvar", 0.4), 1.5),
    (Measure("cvar", 1.0), 0.7),
    (Measure("cvar", 0.2), 2.0),
    (Measure("cvar", 0.05), 2.0),
    (Measure("mean_cvar", 0.4, 0.25), 0.9),
    (Measure("worst_case"), 2.0),
    (Measure("proportional_hazard", 0.5), 1.154321),
    (Measure("vocab_quantile", 0.5), 0.4),
]


@pytest.mark.parametrize(("measure", "expected"), HAND, ids=[measure.label for measure, _ in HAND])
def test_worked_by_hand(measure: Measure, expected: float) -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    law = Law(torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64), log_p)
    assert measure.of(law).value.item() == pytest.approx(expected, abs=1e-6)
    if measure.label == "cvar@0.4":
        assert torch.allclose(measure.of(law).q, torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("order", [1.5, 2.0, 6.0])
def test_erm_is_a_renyi_divergence(order: float) -> None:
    generator = torch.Generator().manual_seed(2)
    log_ref, log_pi = torch.randn(2, 4, 30, generator=generator, dtype=torch.float64).log_softmax(-1)
    p, q = log_ref.exp().numpy(), log_pi.exp().numpy()
    renyi = np.log((p**order * q ** (1 - order)).sum(-1)) / (order - 1)
    assert np.allclose(numpy(Measure("erm", order - 1)(log_ref, log_pi).value), renyi)


@NAMES
def test_log_probabilities_normalised_to_few_digits(name: str) -> None:
    """Logits of 1e4 in float32 leave log pi_ref off by up to half a thousandth for a whole row; p has its digits."""
    generator = torch.Generator().manual_seed(7)
    log_ref, log_pi = torch.randn(2, 20, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    measure = Measure(name, 1e-3 if name == "erm" else 0.99)
    ratio = 400 * (log_ref - log_pi)
    exactly = measure.of(Law(ratio, log_ref))
    value, q = measure.of(Law(ratio, log_ref + 5e-4, log_ref.exp()))
    assert torch.allclose(value, exactly.value, rtol=1e-6, atol=1e-9)
    assert torch.allclose(q, exactly.q, rtol=1e-6, atol=1e-9)


@NAMES
def test_a_token_that_only_the_policy_never_produces_is_no_finite_risk(name: str) -> None:
    """Infinite risk must show in the value, where the head refuses it."""
    if not MEASURES[name].is_risk_measure:
        pytest.skip("the published code's rule keeps an entry by its rank")
    log_ref = torch.zeros(1, 6).log_softmax(-1)
    log_pi = torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0, 0.0]]).log_softmax(-1)
    assert not torch.isfinite(Measure(name, 0.5)(log_ref, log_pi).value).any()


WRONG = [
    ("var", 0.5, 0.5, r"risk\.measure: unknown measure 'var'.*cvar"),
    *[
        (name, level, 0.5, rf"risk\.level: {name} takes a level in \(0, 1\]")
        for name in ("cvar", "mean_cvar", "evar", "proportional_hazard", "vocab_quantile", "vocab_quantile_halves")
        for level in (0.0, -0.1, 1.0001, float("nan"), float("inf"))
    ],
    *[("erm", level, 0.5, r"risk\.level: erm takes a level in \(0, inf\)") for level in (0.0, -1.0, float("inf"))],
    *[("wang", level, 0.5, r"risk\.level: wang takes a level in \[0, inf\)") for level in (-1e-9, float("nan"))],
    *[
        ("mean_cvar", 0.5, weight, r"risk\.weight: mean_cvar takes a weight in \[0, 1\]")
        for weight in (-0.1, 1.1, float("nan"))
    ],
]


@pytest.mark.parametrize(("name", "level", "weight", "message"), WRONG)
def test_wrong_options_are_refused(name: str, level: float, weight: float, message: str) -> None:
    with pytest.raises(RiskError, match=message):
        Measure(name, level, weight)


def test_the_readme_names_every_measure() -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    missing = [name for name in MEASURES if f"`{name}`" not in readme]
    assert not missing, f"README.md does not name {', '.join(missing)}"
