"""The Triton kernel against the plain path: on a GPU, and without one in Triton's interpreter where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.risk import positions, triton_rows
from pipeline.risk.block import Weights
from pipeline.risk.measures import Measure

MEASURES = [Measure("mean"), *(Measure("cvar", level) for level in (1.0, 0.95, 0.3, 0.01))]


def differences(vocab_size: int, measure: Measure, kind: str, device: str) -> list[float]:
    """Largest difference of values and gradients between kernel and plain path."""
    torch.manual_seed(vocab_size)
    count = 3 if device == "cpu" else 200
    ref = 3 * torch.randn(count, vocab_size)
    pi = ref + 0.4 * torch.randn(count, vocab_size)
    if kind == "equal":
        pi = ref.clone()
    elif kind == "tied":
        pi = ref + torch.randint(0, 3, ref.shape).float()
    elif kind == "masked":
        ref[:, 0] = -torch.inf
    labels = torch.randint(1, vocab_size, (count,)).to(device)
    one, two, three = torch.randn(3, count).to(device)
    found = []
    for weights in (None, Weights(one, two, three), Weights(one, None, three), Weights(one, None, None)):
        outcomes = []
        for reduce in (triton_rows.reduce_rows, positions._whole_in_torch):
            logits, ref_logits = pi.to(device, copy=True), ref.to(device, copy=True)
            rows = reduce(logits, ref_logits, labels, measure, weights)
            outcomes.append([*rows, *([] if weights is None else [logits])])
        found += [(ours - plain).abs().max().item() for ours, plain in zip(*outcomes, strict=True)]
    return found


KINDS = ["near", "equal", "tied", "masked"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.label)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [2, 333, 49_152, 151_936])
def test_on_a_gpu(vocab_size: int, measure: Measure, kind: str) -> None:
    assert max(differences(vocab_size, measure, kind, "cuda")) < 1e-4


@pytest.mark.skipif(not triton_rows.is_installed(), reason="Triton is not installed (it comes with CUDA builds)")
def test_in_the_interpreter() -> None:
    """The interpreter must be chosen before Triton is imported, so in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([_ROOT, *sys.path])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_without_a_gpu_it_is_not_used() -> None:
    logits = torch.zeros(2, 8)
    assert not triton_rows.usable(logits, Measure("mean"), positions._whole_in_torch)


_ROOT = str(Path(__file__).resolve().parents[2])

if __name__ == "__main__":
    triton_rows._BLOCK = 64  # rows of several blocks, the last one partly filled
    for size in (7, 333):
        for measure in MEASURES:
            for kind in KINDS:
                assert max(differences(size, measure, kind, "cpu")) < 2e-5, (size, measure, kind)
