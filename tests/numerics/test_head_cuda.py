"""The heads on a CUDA device give what they give on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.risk.head import HiddenReference, Reference, TopKReference
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import pair_loss
from pipeline.risk.sequence_head import sequence_scores, token_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import MEASURES, METHODS, RISK_MEASURES, Case, by_label, make_case, plain_laws, top_k_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CVAR = Measure("cvar", 0.3)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def both(dtype: torch.dtype) -> tuple[Case, Case]:
    case = make_case(vocab=301, width=16, scale=0.6, softcap=20.0, padding=3, dtype=dtype)
    return case, case.to("cuda")


def by_pairs(
    case: Case, measure: Measure, method: str = "ra_dpo1", positions: int = 9, reference: Reference | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    found = pair_loss(
        case.hidden,
        case.head,
        case.reference if reference is None else reference,
        case.labels,
        case.mask,
        measure,
        pair_form(method, 0.1, 0.5),
        case.weight,
        block_bytes=case.block_bytes(positions),
    )
    gradients = torch.autograd.grad(found.loss, case.leaves)
    return [part.detach() for part in found if part is not None], list(gradients)


def by_sequences(case: Case, measure: Measure) -> tuple[list[Tensor], list[Tensor]]:
    found = sequence_scores(
        case.hidden, case.head, case.reference, case.labels, case.mask, measure, block_bytes=case.block_bytes(4)
    )
    total = (found.logps + 0.3 * found.kl + found.risk).sum()
    return [part.detach() for part in found], list(torch.autograd.grad(total, case.leaves))


def compare(on_cpu: tuple[list[Tensor], list[Tensor]], on_cuda: tuple[list[Tensor], list[Tensor]]) -> None:
    """Sums of products in float32, in another order. Gradients of halves: a GPU multiplies their directions rounded
    to 8 bits, and both round the result."""
    for one, other in zip(on_cpu[0], on_cuda[0], strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=2e-4)
    for one, other in zip(on_cpu[1], on_cuda[1], strict=True):
        error = 1e-4 if one.dtype == torch.float32 else 2**-6
        torch.testing.assert_close(other.cpu(), one, rtol=error, atol=error * one.abs().max().item())


@dtypes
@pytest.mark.parametrize("measure", MEASURES, **by_label)
def test_the_loss_of_pairs(measure: Measure, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = both(dtype)
    compare(by_pairs(on_cpu, measure), by_pairs(on_cuda, measure))


@dtypes
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("positions", [1, 4, 1000])
def test_every_method_and_block(method: str, positions: int, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = both(dtype)
    compare(by_pairs(on_cpu, CVAR, method), by_pairs(on_cuda, CVAR, method, positions))


@dtypes
@pytest.mark.parametrize("measure", MEASURES, **by_label)
def test_scores_of_sequences(measure: Measure, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = both(dtype)
    compare(by_sequences(on_cpu, measure), by_sequences(on_cuda, measure))


@dtypes
@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_the_top_k_tier(measure: Measure, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = both(dtype)
    log_ref, _ = plain_laws(on_cpu.to(torch.float32))
    record = top_k_of(log_ref.detach(), on_cpu.labels[on_cpu.mask], 20)
    moved = TopKReference(record.ids.cuda(), record.log_probs.cuda(), record.log_rest.cuda(), record.label_logps.cuda())
    compare(by_pairs(on_cpu, measure, reference=record), by_pairs(on_cuda, measure, reference=moved))


@dtypes
def test_scores_of_tokens(dtype: torch.dtype) -> None:
    results = []
    for case in both(dtype):
        found = token_scores(
            case.hidden,
            case.head,
            HiddenReference(case.reference.hidden, case.reference.head),
            case.labels,
            case.mask,
            tuple(MEASURES),
            block_bytes=case.block_bytes(4),
        )
        results.append(([found.logps, found.ref_logps, *found.risk.values()], []))
    compare(*results)
