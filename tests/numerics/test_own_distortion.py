"""A distortion of the user's own, named module:function, beside the shipped measures it equals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import RiskError
from pipeline.risk.measures import Measure

SOURCE = """
import torch

def half_tail(mass):
    return (mass / 0.5).clamp(max=1.0)

def identity(mass):
    return mass

def convex(mass):
    return mass**2

def shifted(mass):
    return mass + 0.5

def scalar(mass):
    return 1.0

def raises(mass):
    raise KeyError("no")
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_distortions.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(("own", "shipped"), [("half_tail", Measure("cvar", 0.5)), ("identity", Measure("mean"))])
def test_equals_the_shipped_measure(own: str, shipped: Measure) -> None:
    torch.manual_seed(0)
    log_ref, log_pi = (torch.randn(2, 5, 300, dtype=torch.float64) * 2).log_softmax(-1)
    measure = Measure(f"own_distortions:{own}")
    ours, theirs = measure(log_ref, log_pi), shipped(log_ref, log_pi)
    assert torch.allclose(ours.value, theirs.value, atol=1e-12)
    assert torch.allclose(ours.q, theirs.q, atol=1e-12)
    assert measure.label == f"own_distortions:{own}"
    assert measure.is_risk_measure


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("convex", "rising and concave"),
        ("shifted", "maps 0 to 0 and 1 to 1"),
        ("scalar", "one weight a mass"),
        ("raises", "failed with KeyError"),
        ("absent", "no function 'absent'"),
    ],
)
def test_what_is_no_distortion_is_refused(own: str, words: str) -> None:
    with pytest.raises(RiskError, match=words):
        Measure(f"own_distortions:{own}")


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(RiskError, match="cannot be imported"):
        Measure("no_such_module:function")
