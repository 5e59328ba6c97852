"""The blocked head against autograd through whole-vocabulary tensors in float64."""

from __future__ import annotations

import pytest
import torch

from pipeline.risk.head import (
    Head,
    HiddenReference,
    ScalarReference,
    positions_per_block,
    sequence_logps,
    sequence_scores,
    token_scores,
)
from pipeline.risk.measures import Measure

B, T, D, V = 4, 7, 5, 23
MEASURES = [Measure("mean", 1.0), Measure("cvar", 0.3), Measure("erm", 2.0), Measure("worst_case", 1.0)]


def inputs(dtype: torch.dtype = torch.float64, bias: bool = True) -> dict:
    torch.manual_seed(0)
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 1:7] = mask[2, 3:4] = True  # the last sequence has no response at all
    return {
        "hidden": torch.randn(B, T, D, dtype=dtype, requires_grad=True),
        "weight": torch.randn(V, D, dtype=dtype, requires_grad=True),
        "bias": torch.randn(V, dtype=dtype, requires_grad=True) if bias else None,
        "ref_hidden": torch.randn(int(mask.sum()), D, dtype=dtype),
        "ref_head": Head(torch.randn(V, D, dtype=dtype), torch.randn(V, dtype=dtype)),
        "labels": torch.randint(0, V, (B, T)),
        "mask": mask,
    }


def plain(x: dict, measure: Measure) -> tuple[torch.Tensor, ...]:
    """Everything at once, differentiated by autograd (the measure through its value)."""
    rows = x["hidden"][x["mask"]]
    log_pi = torch.nn.functional.linear(rows, x["weight"], x["bias"]).log_softmax(-1)
    log_ref = torch.nn.functional.linear(x["ref_hidden"], x["ref_head"].weight, x["ref_head"].bias).log_softmax(-1)
    labels = x["labels"][x["mask"]].unsqueeze(-1)
    ratio = log_ref - log_pi
    p = log_ref.exp()
    if measure.name == "erm":
        risk = torch.logsumexp(log_ref + measure.level * ratio, -1) / measure.level
    else:
        q = measure.distorted(log_ref, log_pi.detach(), measure.value(log_ref, log_pi.detach())[1])
        risk = (q * ratio).sum(-1)  # linear in L at the optimal q, with the same value and gradient
    per_token = torch.stack(
        [log_pi.gather(-1, labels)[:, 0], log_ref.gather(-1, labels)[:, 0], (p * ratio).sum(-1), risk]
    )
    sequence = x["mask"].nonzero()[:, 0]
    return tuple(torch.zeros(B, dtype=rows.dtype).index_add(0, sequence, row) for row in per_token)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.label)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_positions", [1, 3, 100])
def test_values_and_gradients(measure: Measure, bias: bool, block_positions: int) -> None:
    """Same sums and same gradients as the plain computation, for any block size, with arbitrary upstream."""
    x = inputs(bias=bias)
    block_bytes = block_positions * 8 * 4 * V
    assert positions_per_block(block_bytes, V) == block_positions
    scores = sequence_scores(
        x["hidden"],
        Head(x["weight"], x["bias"]),
        HiddenReference(x["ref_hidden"], x["ref_head"]),
        x["labels"],
        x["mask"],
        measure,
        block_bytes=block_bytes,
    )
    expected = plain(x, measure)
    for ours, theirs in zip(scores, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    upstream = torch.randn(3, B, dtype=torch.float64)
    leaves = [leaf for leaf in (x["hidden"], x["weight"], x["bias"]) if leaf is not None]
    ours = torch.autograd.grad(
        (upstream[0] * scores.logps + upstream[1] * scores.kl + upstream[2] * scores.risk).sum(), leaves
    )
    theirs = torch.autograd.grad(
        (upstream[0] * expected[0] + upstream[1] * expected[2] + upstream[2] * expected[3]).sum(), leaves
    )
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert (ours[0][~x["mask"]] == 0).all(), "prompt and padding get no gradient"


def test_gradcheck_of_log_probabilities() -> None:
    x = inputs()
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: sequence_logps(hidden, Head(weight, bias), x["labels"], x["mask"], block_bytes=1),
        (x["hidden"], x["weight"], x["bias"]),
    )


def test_scalar_reference_needs_no_head() -> None:
    x = inputs()
    head = Head(x["weight"], x["bias"])
    ref_logps = torch.randn(B, dtype=torch.float64)
    scores = sequence_scores(
        x["hidden"], head, ScalarReference(ref_logps), x["labels"], x["mask"], MEASURES[0], block_bytes=1 << 20
    )
    assert scores.kl is None
    assert scores.risk is None
    assert torch.equal(scores.ref_logps, ref_logps)
    assert torch.allclose(scores.logps, plain(x, MEASURES[0])[0])


def test_token_scores_sum_to_sequence_scores() -> None:
    x = inputs()
    head, reference = Head(x["weight"], x["bias"]), HiddenReference(x["ref_hidden"], x["ref_head"])
    tokens = token_scores(x["hidden"], head, reference, x["labels"], x["mask"], tuple(MEASURES), block_bytes=5000)
    owner = x["mask"].nonzero()[:, 0]
    for measure in MEASURES:
        scores = sequence_scores(x["hidden"], head, reference, x["labels"], x["mask"], measure, block_bytes=5000)
        total = torch.zeros(B).index_add(0, owner, tokens.risk[measure.label])
        assert torch.allclose(total.double(), scores.risk, atol=1e-4)


def test_bfloat16_inputs_are_reduced_in_float32() -> None:
    """Half-precision weights give float32 sums close to the exact ones, and gradients in the weights' dtype."""
    x = inputs(torch.bfloat16)
    scores = sequence_scores(
        x["hidden"],
        Head(x["weight"], x["bias"]),
        HiddenReference(x["ref_hidden"], x["ref_head"]),
        x["labels"],
        x["mask"],
        Measure("cvar", 0.5),
        block_bytes=1 << 20,
    )
    assert scores.risk.dtype == torch.float32
    (scores.logps.sum() + scores.risk.sum()).backward()
    assert x["weight"].grad.dtype == torch.bfloat16
    assert torch.isfinite(x["weight"].grad).all()


def test_half_precision_logits_keep_float32_digits() -> None:
    """Logits near 30 would be off by 0.1 if the product were rounded to bfloat16; the sums stay within 1e-3."""
    x = inputs(torch.bfloat16)
    weight = (30 * x["weight"].detach().float()).bfloat16()
    wide = [value.detach().double() for value in (x["hidden"], weight, x["bias"])]
    narrow = sequence_logps(
        x["hidden"].detach(), Head(weight, x["bias"].detach()), x["labels"], x["mask"], block_bytes=5000
    )
    exact = sequence_logps(wide[0], Head(wide[1], wide[2]), x["labels"], x["mask"], block_bytes=5000)
    assert wide[1].abs().max() > 30
    assert torch.allclose(narrow.double(), exact, rtol=1e-5, atol=1e-3)


def test_a_record_that_does_not_fit_is_refused() -> None:
    x = inputs()
    head = Head(x["weight"], x["bias"])
    with pytest.raises(ValueError, match="10 rows"):
        sequence_scores(
            x["hidden"],
            head,
            HiddenReference(x["ref_hidden"][:-1].new_zeros(10 + 1, D)[:10], x["ref_head"]),
            x["labels"],
            torch.ones(B, T, dtype=torch.bool),
            MEASURES[0],
            block_bytes=1,
        )
    with pytest.raises(ValueError, match="vocabularies"):
        sequence_scores(
            x["hidden"],
            head,
            HiddenReference(x["ref_hidden"], Head(torch.zeros(V + 1, D, dtype=torch.float64))),
            x["labels"],
            x["mask"],
            MEASURES[0],
            block_bytes=1,
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.label)
def test_cuda_agrees_with_the_cpu(measure: Measure) -> None:
    results = []
    for device in ("cpu", "cuda"):
        x = inputs(torch.float32)
        moved = {name: x[name].detach().to(device).requires_grad_() for name in ("hidden", "weight", "bias")}
        head = Head(x["ref_head"].weight.to(device), x["ref_head"].bias.to(device))
        scores = sequence_scores(
            moved["hidden"],
            Head(moved["weight"], moved["bias"]),
            HiddenReference(x["ref_hidden"].to(device), head),
            x["labels"].to(device),
            x["mask"].to(device),
            measure,
            block_bytes=5000,
        )
        (scores.logps.sum() + scores.risk.sum()).backward()
        results.append([scores.logps, scores.risk, *(leaf.grad for leaf in moved.values())])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two.cpu(), atol=1e-4)
