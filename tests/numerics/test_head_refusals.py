"""What does not fit is refused with one message that names the tensor and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import RiskError
from pipeline.risk.head import Head, HiddenReference, ScalarReference, TopKReference
from pipeline.risk.losses import pair_form
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import pair_loss
from pipeline.risk.sequence_head import sequence_logps, sequence_scores, token_scores

sys.path.insert(0, str(Path(__file__).parent))
from heads import EVERYTHING, MEASURES, RISK_MEASURES, Case, by_label, make_case, plain_laws, top_k_of

CVAR = Measure("cvar", 0.3)
COUNT = 20
"""Positions under the mask of `make_case`."""


def by_pairs(case: Case, reference: Any = None, measure: Measure = CVAR, method: str = "ra_dpo2") -> None:
    pair_loss(
        case.hidden,
        case.head,
        case.reference if reference is None else reference,
        case.labels,
        case.mask,
        measure,
        pair_form(method, 0.1, 0.5),
        case.weight,
        block_bytes=EVERYTHING,
    )


def by_sequences(case: Case, reference: Any = None, measure: Measure = CVAR) -> None:
    record = case.reference if reference is None else reference
    sequence_scores(case.hidden, case.head, record, case.labels, case.mask, measure, block_bytes=EVERYTHING)


Scorer = Callable[..., None]
both = pytest.mark.parametrize("score", [by_pairs, by_sequences], ids=["pairs", "sequences"])


def change_head(**options: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.head = replace(case.head, **options)

    return change


def change_reference(hidden: Any = None, **options: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        states = case.reference.hidden if hidden is None else hidden(case.reference.hidden)
        case.reference = HiddenReference(states, replace(case.reference.head, **options))

    return change


def set_to(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Case], None]:
    return lambda case: setattr(case, name, change(getattr(case, name)))


def fill(name: str, position: tuple[int, ...], value: float) -> Callable[[Case], None]:
    """``name``: hidden, weight or bias of the policy (of the reference with "ref_" before it), or labels."""

    def change(case: Case) -> None:
        of = case.reference if name.startswith("ref_") else case
        short = name.removeprefix("ref_")
        tensor = getattr(of, short) if short in ("hidden", "labels") else getattr(of.head, short)
        with torch.no_grad():
            tensor[position] = value

    return change


# Positions 2, 3 and 4 of the first sequence are under the mask, 0 to 5 of the fourth, 1 to 5 of the sixth.
FAULTS: dict[str, tuple[Callable[[Case], None], list[str]]] = {
    "hidden without time": (set_to("hidden", lambda hidden: hidden[:, 0]), ["hidden", "(10, 5)", "T, d]"]),
    "hidden of another length": (
        set_to("hidden", lambda hidden: hidden[:, :5]),
        ["hidden (10, 5, 5)", "mask (10, 6)", "do not agree"],
    ),
    "labels of another length": (set_to("labels", lambda labels: labels[:, :5]), ["labels (10, 5)", "do not agree"]),
    "labels that are no integers": (set_to("labels", torch.Tensor.double), ["labels", "float64", "integer"]),
    "mask of another length": (set_to("mask", lambda mask: mask[:8]), ["mask (8, 6)", "do not agree"]),
    "mask of integers": (set_to("mask", torch.Tensor.long), ["mask has dtype torch.int64", "booleans"]),
    "no position under the mask": (
        lambda case: (set_to("mask", torch.zeros_like)(case), change_reference(lambda hidden: hidden[:0])(case))[0],
        ["mask is false at every position", "mark the response tokens"],
    ),
    "label beyond the vocabulary": (
        fill("labels", (0, 3), 23),
        ["labels", "token 23", "vocabulary of 23", "vocab_size"],
    ),
    "label below zero": (fill("labels", (0, 3), -100), ["labels", "token -100", "mask it out"]),
    "another width": (set_to("hidden", lambda hidden: hidden[..., :4]), ["policy's hidden states have 4 columns", "5"]),
    "another dtype than the head": (
        set_to("hidden", torch.Tensor.float),
        ["policy's hidden states are torch.float32", "weight is torch.float64", "convert"],
    ),
    "weight without columns": (change_head(weight=torch.zeros(23)), ["policy head's weight", "(23,)", "[V, d]"]),
    "bias of another length": (change_head(bias=torch.zeros(22)), ["policy head's bias", "(22,)", "(23,)"]),
    "vocab_size beyond the weight": (change_head(vocab_size=24), ["policy head's vocab_size is 24", "23 rows"]),
    "vocab_size of zero": (change_head(vocab_size=0), ["policy head's vocab_size is 0"]),
    "reference rows missing": (
        change_reference(lambda hidden: hidden[:-1]),
        ["reference's hidden states have 19 rows", "20 positions", "(sequence, position) order"],
    ),
    "reference not by rows": (
        change_reference(lambda hidden: hidden.unsqueeze(1)),
        ["reference's hidden states", "(20, 1, 5)", "[N, d]"],
    ),
    "reference of another width": (
        change_reference(lambda hidden: hidden[:, :3]),
        ["reference's hidden states have 3 columns", "5"],
    ),
    "reference of another dtype than its head": (
        change_reference(torch.Tensor.float),
        ["reference's hidden states are torch.float32", "torch.float64"],
    ),
    "reference too narrow for the policy": (
        lambda case: setattr(case, "reference", case.to(torch.float32).reference),
        ["reference", "torch.float32", "policy", "torch.float64", "convert"],
    ),
    "reference bias of another length": (change_reference(bias=torch.zeros(1)), ["reference head's bias", "(1,)"]),
    "reference of another vocabulary": (
        change_reference(weight=torch.zeros(24, 5, dtype=torch.float64), bias=None),
        ["different vocabularies, 23 and 24", "vocab_size of the padded head"],
    ),
    "NaN in the policy's states": (
        fill("hidden", (3, 2), torch.nan),
        ["policy's hidden states are not finite at 1 of 20", "sequence 3", "learning rate"],
    ),
    "infinity in the policy's states": (
        fill("hidden", (5, 1, 0), torch.inf),
        ["policy's hidden states are not finite", "sequence 5"],
    ),
    "NaN in the policy's weight": (fill("weight", (22, 0), torch.nan), ["policy head's weight or bias", "diverged"]),
    "NaN in the policy's bias": (fill("bias", (1,), torch.nan), ["policy head's weight or bias", "diverged"]),
    "NaN in the reference's states": (
        fill("ref_hidden", (4, 1), torch.nan),
        ["reference's hidden states", "compute the reference again"],
    ),
    "NaN in the reference's weight": (fill("ref_weight", (0, 0), torch.nan), ["reference's hidden states or head"]),
    "NaN in the reference's bias": (fill("ref_bias", (0,), torch.nan), ["reference's hidden states or head"]),
    "a token that only the policy masks": (
        fill("bias", (9,), -torch.inf),
        ["policy head's bias masks token 9", "risk is infinite", "mask it in both"],
    ),
}


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str, score: Scorer) -> None:
    case = make_case()
    case.labels = case.labels.clamp_max(8)  # not the token that a bias masks
    score(case)
    assert int(case.mask.sum()) == COUNT
    change, words = FAULTS[fault]
    change(case)
    with pytest.raises(RiskError) as caught:
        score(case)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@both
@pytest.mark.parametrize("measure", MEASURES, **by_label)
@pytest.mark.parametrize("fault", ["NaN in the policy's states", "a token that only the policy masks"])
def test_no_measure_hides_what_is_not_finite(measure: Measure, fault: str, score: Scorer) -> None:
    case = make_case()
    case.labels = case.labels.clamp_max(8)
    FAULTS[fault][0](case)
    with pytest.raises(RiskError, match=r"not finite|masks token 9"):
        score(case, measure=measure)


def test_a_masked_label() -> None:
    """The response itself has probability zero under both: no number says by how much."""
    case = make_case(seed=1)
    with torch.no_grad():
        for bias in (case.head.bias, case.reference.head.bias):
            bias[case.labels[0, 2]] = -torch.inf
    with pytest.raises(RiskError, match=r"log-probability of a response .* masks in the heads' biases"):
        by_pairs(case)


class TestPairs:
    @pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(5, 1), torch.ones(10)])
    def test_one_weight_a_pair(self, weight: torch.Tensor) -> None:
        case = make_case()
        case.weight = weight
        with pytest.raises(RiskError, match=r"weight \(.*one weight a pair"):
            by_pairs(case)

    def test_an_odd_number_of_sequences(self) -> None:
        case = make_case()
        case.hidden, case.labels, case.mask = case.hidden[:9], case.labels[:9], case.mask[:9]
        with pytest.raises(RiskError, match=r"hidden has shape \(9, 6, 5\).*chosen then rejected"):
            by_pairs(case)

    @pytest.mark.parametrize("method", ["tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"])
    def test_a_scalar_record_for_a_risk(self, method: str) -> None:
        with pytest.raises(RiskError, match=r"scalar tier .* use the hidden tier, or dpo"):
            by_pairs(make_case(), ScalarReference(torch.zeros(10, dtype=torch.float64)), method=method)


@both
class TestRecords:
    @pytest.mark.parametrize("measure", [m for m in MEASURES if m not in RISK_MEASURES], **by_label)
    def test_top_k_for_a_rule_that_counts_the_vocabulary(self, score: Scorer, measure: Measure) -> None:
        with pytest.raises(RiskError, match=f"{measure.name} counts .* use the hidden tier"):
            score(make_case(), self.top_k(make_case()), measure)

    @staticmethod
    def top_k(case: Case) -> TopKReference:
        log_ref, _ = plain_laws(case)
        return top_k_of(log_ref.detach(), case.labels[case.mask], 4)

    @pytest.mark.parametrize(
        ("column", "change"),
        [
            ("ids", lambda ids: ids[:-1]),
            ("ids", lambda ids: ids[:, :3]),
            ("log_probs", lambda log_probs: log_probs[:, 0]),
            ("log_rest", lambda log_rest: log_rest[1:]),
            ("log_rest", lambda log_rest: log_rest.unsqueeze(-1)),
            ("label_logps", lambda logps: logps.new_zeros(0)),
            ("label_logps", lambda logps: logps.unsqueeze(-1)),
        ],
    )
    def test_top_k_columns_that_do_not_fit(self, score: Scorer, column: str, change: Any) -> None:
        case = make_case()
        record = self.top_k(case)
        wrong = change(getattr(record, column))
        with pytest.raises(RiskError) as caught:
            score(case, replace(record, **{column: wrong}))
        assert f"{column} {tuple(wrong.shape)}" in str(caught.value)
        assert "20 positions: give one row a position" in str(caught.value)

    @pytest.mark.parametrize("token", [23, -1])
    def test_top_k_ids_outside_the_vocabulary(self, score: Scorer, token: int) -> None:
        case = make_case()
        record = self.top_k(case)
        record.ids[3, 1] = token
        with pytest.raises(RiskError, match=rf"token {token}, outside the policy's vocabulary of 23"):
            score(case, record)

    @pytest.mark.parametrize("column", ["log_probs", "log_rest", "label_logps"])
    def test_top_k_columns_that_are_not_finite(self, score: Scorer, column: str) -> None:
        case = make_case()
        record = self.top_k(case)
        getattr(record, column)[3] = torch.nan
        with pytest.raises(RiskError, match="top-k record is not finite: compute the reference again"):
            score(case, record)

    @pytest.mark.parametrize("shape", [(9,), (10, 1), (5,)])
    def test_scalars_that_do_not_fit(self, score: Scorer, shape: tuple[int, ...]) -> None:
        options = {"method": "dpo"} if score is by_pairs else {}
        with pytest.raises(RiskError, match=r"reference's logps have shape .* expected \(10,\)"):
            score(make_case(), ScalarReference(torch.zeros(shape, dtype=torch.float64)), **options)

    @pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
    def test_scalars_that_are_not_finite(self, score: Scorer, bad: float) -> None:
        options = {"method": "dpo"} if score is by_pairs else {}
        logps = torch.zeros(10, dtype=torch.float64)
        logps[4] = bad
        with pytest.raises(RiskError, match="reference's logps are not finite: compute the reference again"):
            score(make_case(), ScalarReference(logps), **options)


@pytest.mark.parametrize("measure", RISK_MEASURES, **by_label)
def test_scores_of_tokens_are_checked_too(measure: Measure) -> None:
    case = make_case()
    FAULTS["a token that only the policy masks"][0](case)
    case.labels = case.labels.clamp_max(8)
    with pytest.raises(RiskError, match="masks token 9"):
        token_scores(case.hidden, case.head, case.reference, case.labels, case.mask, (measure,), block_bytes=EVERYTHING)


def test_log_probabilities_alone_are_checked_too() -> None:
    case = make_case()
    with torch.no_grad():
        case.hidden[0, 2] = torch.nan
    with pytest.raises(RiskError, match="sequence 0"):
        sequence_logps(case.hidden, case.head, case.labels, case.mask, block_bytes=EVERYTHING)
    with pytest.raises(RiskError, match="4 columns"):
        sequence_logps(case.hidden[..., :4], Head(case.head.weight), case.labels, case.mask, block_bytes=EVERYTHING)
