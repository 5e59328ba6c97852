"""The losses against values worked by hand.

With beta = 0.1, log-ratios 2 (chosen) and -1 (rejected) give u = 0.3. With D(chosen) = 4, D(rejected) = 6 and
alpha = 0.5: form 1 has z = 0.3 - 0.1 * (6 - 4) = 0.1, form 2 has z = 0.3 - 0.5 * 0.1 * 2 = 0.2.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import RiskError
from pipeline.risk.losses import PairLoss, pair_form, preference_loss

METHODS = ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"]


def loss(method: str, **changed: torch.Tensor | None) -> PairLoss:
    values = {
        "chosen_logps": torch.tensor([-8.0], dtype=torch.float64, requires_grad=True),
        "rejected_logps": torch.tensor([-13.0], dtype=torch.float64, requires_grad=True),
        "chosen_ref_logps": torch.tensor([-10.0], dtype=torch.float64),
        "rejected_ref_logps": torch.tensor([-12.0], dtype=torch.float64),
        "chosen_risk": torch.tensor([4.0], dtype=torch.float64, requires_grad=True),
        "rejected_risk": torch.tensor([6.0], dtype=torch.float64, requires_grad=True),
    } | changed
    return preference_loss(pair_form(method, beta=0.1, alpha=0.5), **values)


@pytest.mark.parametrize(
    ("method", "z"), [("dpo", 0.3), ("tdpo1", 0.1), ("ra_dpo1", 0.1), ("tdpo2", 0.2), ("ra_dpo2", 0.2)]
)
def test_worked_by_hand(method: str, z: float) -> None:
    result = loss(method)
    assert result.loss.item() == pytest.approx(math.log1p(math.exp(-z)), abs=1e-12)
    assert result.reward_margin.item() == 3.0


@pytest.mark.parametrize("method", METHODS)
def test_ln2_at_the_reference(method: str) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    logps = torch.tensor([-5.0, -6.0, -7.0], dtype=torch.float64)
    result = preference_loss(pair_form(method, 0.1, 0.5), logps, logps - 1, logps, logps - 1, zero, zero)
    assert torch.allclose(result.loss, torch.full((3,), math.log(2.0), dtype=torch.float64))


def test_the_second_form_leaves_the_chosen_risk_alone() -> None:
    """Gradient of -log sigmoid(z) is -sigmoid(-z) dz: form 1 rewards a larger D(chosen), form 2 has none."""
    for method, z, on_chosen in (("ra_dpo1", 0.1, 0.1), ("ra_dpo2", 0.2, 0.0)):
        chosen = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
        rejected = torch.tensor([6.0], dtype=torch.float64, requires_grad=True)
        loss(method, chosen_risk=chosen, rejected_risk=rejected).loss.sum().backward()
        pull = 1 / (1 + math.exp(z))
        assert (0.0 if chosen.grad is None else chosen.grad.item()) == pytest.approx(-pull * on_chosen)
        assert rejected.grad.item() == pytest.approx(pull * (0.1 if method.endswith("1") else 0.05))


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_one_number_times_the_coefficients_of_the_form(method: str) -> None:
    """dloss / d(logps, D) = -sigmoid(-z) * (coefficients): what the fused head multiplies its directions with."""
    columns = {
        name: torch.tensor([value], dtype=torch.float64, requires_grad=True)
        for name, value in {
            "chosen_logps": -8.0,
            "rejected_logps": -13.0,
            "chosen_risk": 4.0,
            "rejected_risk": 6.0,
        }.items()
    }
    result = loss(method, **columns).loss
    gradients = torch.autograd.grad(result.sum(), list(columns.values()), allow_unused=True)
    form = pair_form(method, 0.1, 0.5)
    pull = math.exp(-result.item()) - 1  # sigmoid(z) - 1
    expected = [form.logps, -form.logps, form.chosen_risk_gradient, -form.risk]
    found = [0.0 if gradient is None else gradient.item() for gradient in gradients]
    assert found == pytest.approx([pull * one for one in expected], abs=1e-12)


def test_extreme_margins_stay_finite() -> None:
    """-log sigmoid(z) is -z far below zero and e^-z far above, with gradients -1 and 0."""
    margin = torch.tensor([-1e5, 1e5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    result = preference_loss(pair_form("dpo", 0.1, 0.0), margin, zero, zero, zero, None, None)
    assert result.loss.tolist() == [1e4, 0.0]
    (gradient,) = torch.autograd.grad(result.loss.sum(), margin)
    assert gradient.tolist() == [-0.1, 0.0]


@pytest.mark.parametrize("method", ["tdpo2", "ra_dpo2"])
def test_without_alpha_the_second_form_is_dpo(method: str) -> None:
    assert not pair_form(method, 0.1, 0.0).uses_risk
    assert pair_form(method, 0.1, 0.0) == pair_form("dpo", 0.1, 0.5)


@pytest.mark.parametrize("missing", ["chosen_risk", "rejected_risk"])
def test_what_cannot_be_computed_is_refused(missing: str) -> None:
    assert loss("dpo", chosen_risk=None, rejected_risk=None).loss.item() > 0
    with pytest.raises(RiskError, match="sequential risk"):
        loss("ra_dpo2", **{missing: None})


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(RiskError, match=r"unknown method 'ipo'; choose one of dpo, .*ra_dpo2"):
        loss("ipo")
