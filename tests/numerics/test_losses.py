"""The losses against values worked by hand.

With beta = 0.1, log-ratios 2 (chosen) and -1 (rejected) give u = 0.3. With D(chosen) = 4, D(rejected) = 6 and
alpha = 0.5: form 1 has z = 0.3 - 0.1 * (6 - 4) = 0.1, form 2 has z = 0.3 - 0.5 * 0.1 * 2 = 0.2.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.risk.losses import preference_loss


def loss(method: str, **changed: torch.Tensor) -> torch.Tensor:
    values = {
        "chosen_logps": torch.tensor([-8.0], dtype=torch.float64, requires_grad=True),
        "rejected_logps": torch.tensor([-13.0], dtype=torch.float64, requires_grad=True),
        "chosen_ref_logps": torch.tensor([-10.0], dtype=torch.float64),
        "rejected_ref_logps": torch.tensor([-12.0], dtype=torch.float64),
        "chosen_risk": torch.tensor([4.0], dtype=torch.float64, requires_grad=True),
        "rejected_risk": torch.tensor([6.0], dtype=torch.float64, requires_grad=True),
    } | changed
    return preference_loss(method, **values, beta=0.1, alpha=0.5)


@pytest.mark.parametrize(
    ("method", "z"), [("dpo", 0.3), ("tdpo1", 0.1), ("ra_dpo1", 0.1), ("tdpo2", 0.2), ("ra_dpo2", 0.2)]
)
def test_worked_by_hand(method: str, z: float) -> None:
    result = loss(method)
    assert result.loss.item() == pytest.approx(math.log1p(math.exp(-z)), abs=1e-12)
    assert result.reward_margin.item() == 3.0


@pytest.mark.parametrize("method", ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"])
def test_ln2_at_the_reference(method: str) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    logps = torch.tensor([-5.0, -6.0, -7.0], dtype=torch.float64)
    result = preference_loss(method, logps, logps - 1, logps, logps - 1, zero, zero, beta=0.1, alpha=0.5)
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


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ValueError, match="sequential risk"):
        loss("ra_dpo2", chosen_risk=None)
    with pytest.raises(ValueError, match="unknown method"):
        loss("ipo")
