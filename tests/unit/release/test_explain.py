"""Which tokens carried the risk in the worst outputs: worked by hand."""

from __future__ import annotations

import pytest

from pipeline.records import ScoredSample
from pipeline.release.explain import explain


def sample(prompt: str, score: float, tokens: dict[str, float], model: str = "policy") -> ScoredSample:
    risk = list(tokens.values())
    return ScoredSample(
        model="policy" if model == "policy" else "reference",
        prompt_id=prompt,
        seed=0,
        prompt=f"about {prompt}",
        text=" ".join(tokens),
        finished=True,
        scores={"vader": score},
        tokens=list(tokens),
        log_ratio=[-one for one in risk],
        kl=risk,
        risk=risk,
        max_risk=max(risk),
        max_risk_position=0,
        prompt_set="s",
    )


SAMPLES = [
    sample("a", -0.9, {"dull": 3.0, "and": 1.0}),
    sample("b", -0.5, {"and": 0.5, "dull": 1.5}),
    sample("c", 0.3, {"and": 0.5, "warm": 0.5}),
    sample("d", 0.8, {"and": 0.25, "dull": 0.25}),
    sample("z", -1.0, {"dull": 99.0}, model="reference"),
]


def test_the_worst_half_by_hand() -> None:
    found = explain(SAMPLES, "vader", 0.5)
    assert found.num_worst == 2
    assert [one.prompt_id for one in found.outputs] == ["a", "b"], "worst first, the reference's are left out"
    assert (found.risk_worst, found.risk_others) == (3.0, 0.75)
    dull, common = found.tokens
    assert (dull.text, dull.count, dull.risk, dull.share, dull.mean) == ("dull", 2, 4.5, 0.75, 2.25)
    assert dull.mean_elsewhere == 0.25
    assert (common.text, common.share, common.mean_elsewhere) == ("and", 0.25, 0.375)


def test_tokens_of_one_output_in_the_order_of_their_risk() -> None:
    (first, *_) = explain(SAMPLES, "vader", 0.5).outputs
    assert [(one.position, one.text, one.share) for one in first.tokens] == [(0, "dull", 0.75), (1, "and", 0.25)]
    assert first.tokens[0].log_ratio == -3.0
    assert first.risk == 4.0


def test_at_least_one_output_is_the_worst() -> None:
    found = explain(SAMPLES[:1], "vader", 0.01)
    assert found.num_worst == 1
    assert found.risk_others is None
    assert all(one.mean_elsewhere is None for one in found.tokens)


def test_a_policy_that_equals_the_reference_has_no_risk_to_share() -> None:
    found = explain([sample("a", 0.0, {"x": 0.0, "y": 0.0})], "vader", 0.1)
    assert found.outputs[0].risk == 0.0
    assert sum(one.share for one in found.tokens) == pytest.approx(0.0)
