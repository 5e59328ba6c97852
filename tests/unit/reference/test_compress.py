from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models.load import output_head
from pipeline.reference.compress import GROUP, compress, expand, rounding_error


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 200), st.floats(-30, 30), st.integers(0, 2**31))
def test_a_number_is_off_by_half_a_scale_at_most(count: int, width: int, log_size: float, seed: int) -> None:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 2.0**log_size
    values, scales = compress(rows)
    assert values.shape == rows.shape
    assert values.dtype == torch.int8
    assert scales.shape == (count, -(-width // GROUP))
    allowed = scales.repeat_interleave(GROUP, 1)[:, :width] * 0.5001
    assert bool(((expand(values, scales) - rows).abs() <= allowed).all())


def test_zeros_stay_zeros() -> None:
    assert expand(*compress(torch.zeros(2, 70))).abs().max() == 0


def test_an_outlier_spoils_its_own_group_only() -> None:
    rows = torch.full((1, 2 * GROUP), 0.01)
    rows[0, 0] = 1000.0
    found = expand(*compress(rows))
    assert found[0, 1] == 0.0
    torch.testing.assert_close(found[0, GROUP:], rows[0, GROUP:])


def test_the_error_is_that_of_the_distributions(make_model: Callable[..., nn.Module]) -> None:
    head = output_head(make_model())
    rows, labels = 3 * torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40)
    error = rounding_error(rows, head, labels)
    picked = torch.arange(0, 40, 16)
    before = (rows[picked] @ head.weight.T).log_softmax(-1)
    after = (expand(*compress(rows))[picked] @ head.weight.T).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    assert error.positions == 3
    assert error.kl_sum == pytest.approx(kl.sum().item(), rel=1e-3, abs=1e-7)
    assert error.kl_max == pytest.approx(kl.max().item(), rel=1e-3, abs=1e-7)
    changes = (before - after).gather(-1, labels[picked].unsqueeze(-1)).abs()
    assert error.logp_max == pytest.approx(changes.max().item(), rel=1e-4)
    assert 0 < error.kl_max < 0.05
