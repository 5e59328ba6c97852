"""evaluation.json from hand-made samples and pairs: figures worked by hand, and verdicts that don't over-claim."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import EvaluationConfig
from pipeline.errors import EvaluationError
from pipeline.evaluation.pairs import summarise_pairs
from pipeline.evaluation.statistics import Estimate
from pipeline.evaluation.summary import summarise
from pipeline.evaluation.verdict import Degeneration, decide
from pipeline.records import PairScores, ScoredSample

CONFIG = EvaluationConfig(bootstrap_resamples=300, cost_per_incident=10.0)
TRAINING = {"method": "ra_dpo2", "risk_label": "cvar@0.5", "beta": 0.1}
TEXT = "a quiet film about two brothers and the sea with a warm and funny cast that never lets it rest"


def sample(model: str, prompt: int, seed: int, score: float, text: str | None = None) -> ScoredSample:
    text = " ".join(np.random.default_rng(prompt * 10 + seed).permutation(TEXT.split())) if text is None else text
    scores = {"vader": score, "profanity": 0.1 - 0.05 * score, "repetition": 0.0, "length": float(len(text))}
    return ScoredSample(
        model=model,  # type: ignore[arg-type]
        prompt_id=f"p{prompt:03d}",
        seed=seed,
        prompt=f"Review of film {prompt}:\n",
        text=text,
        finished=True,
        scores=scores,
        tokens=["a", " film"],
        log_ratio=[0.1, -0.2],
        kl=[0.01, 0.02],
        risk=[0.02, 0.03],
        max_risk=0.03,
        max_risk_position=1,
        prompt_set="set",
    )


def samples(shift: float, prompts: int = 20, seeds: int = 2, text: str | None = None) -> list[ScoredSample]:
    """Reference scores spread over -0.9..0.9; the policy's are shifted and share the noise (plus its own)."""
    rows = []
    for prompt in range(prompts):
        for seed in range(seeds):
            base = -0.9 + 1.8 * prompt / (prompts - 1) + 0.02 * seed
            own = 0.01 * ((prompt * 7 + seed * 3) % 5 - 2)
            rows += [sample("reference", prompt, seed, base), sample("policy", prompt, seed, base + shift + own, text)]
    return rows


def pair(row: int, chosen: float, rejected: float, group: str | None = None, drift: float = 0.0) -> PairScores:
    """Reference log-probabilities -100 and -80 (100 and 80 bytes); the policy's are changed by the arguments."""
    return PairScores(
        row_id=f"r{row}",
        group=group or f"g{row}",
        chosen_logp=-100.0 + chosen,
        chosen_ref_logp=-100.0,
        rejected_logp=-80.0 + rejected,
        rejected_ref_logp=-80.0,
        chosen_risk={"kl": 1.0, "cvar@0.5": 2.0 + drift},
        rejected_risk={"kl": 1.5, "cvar@0.5": 2.0},
        chosen_bytes=100,
        rejected_bytes=80,
    )


PAIRS = [pair(0, 1.0, -1.0), pair(1, -2.0, -1.0, drift=3.0), pair(2, 0.0, -3.0), pair(3, -1.0, -1.0)]


def test_pair_figures_by_hand() -> None:
    """Pairs 0 and 2 are right, 1 is wrong (right with its risk of 3 added), 3 ties and so is not right."""
    result = summarise_pairs(PAIRS, "ra_dpo2", "cvar@0.5", resamples=200)
    assert result["reward_accuracy"]["value"] == 0.5
    assert result["implicit_reward_accuracy"]["value"] == 0.75
    assert result["chosen_logp_change"]["value"] == pytest.approx(-0.5)
    assert result["rejected_logp_change"]["value"] == pytest.approx(-1.5)
    assert result["chosen_risk"]["cvar@0.5"]["value"] == pytest.approx(2.75)
    assert result["rejected_risk"]["kl"]["value"] == pytest.approx(1.5)
    bits = result["bits_per_byte"]
    assert bits["reference"]["value"] == pytest.approx(1 / math.log(2))
    assert bits["policy"]["value"] == pytest.approx((4 * 180 + 8) / (4 * 180 * math.log(2)))
    assert bits["difference"]["value"] == pytest.approx(bits["policy"]["value"] - bits["reference"]["value"])
    assert result["bits_per_byte_relative_change"]["value"] == pytest.approx(8 / 720)
    assert (result["num_pairs"], result["num_groups"]) == (4, 4)


@pytest.mark.parametrize("method", ["dpo", "tdpo1", "ra_dpo1"])
def test_reward_accuracy_is_the_same_for_every_method_and_the_implicit_one_for_sequential_ones(method: str) -> None:
    result = summarise_pairs(PAIRS, method, "kl", resamples=50)
    assert result["reward_accuracy"]["value"] == 0.5
    assert (result["implicit_reward_accuracy"] is None) == (method == "dpo")


def test_groups_are_resampled_whole() -> None:
    """Forty pairs of two films: with films resampled, accuracy can be 0 or 1, which pairs alone would never be."""
    pairs = [pair(row, 1.0 if row % 2 else -5.0, 0.0, group=f"film{row % 2}") for row in range(40)]
    accuracy = summarise_pairs(pairs, "dpo", "kl", resamples=300)["reward_accuracy"]
    assert accuracy == {"value": 0.5, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    ("pairs", "label", "message"),
    [
        ([], "kl", "no held-out pairs"),
        ([*PAIRS, pair(9, -math.inf, 0.0)], "kl", "r9: chosen_logp is -inf"),
        ([*PAIRS, replace(PAIRS[0], row_id="r8", chosen_risk={"kl": 1.0})], "kl", "r8: its risks"),
        (PAIRS, "erm@1", "no risk under the trained measure 'erm@1'"),
    ],
)
def test_unusable_pairs_are_refused(pairs: list[PairScores], label: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        summarise_pairs(pairs, "ra_dpo1", label, resamples=10)


def test_a_clear_improvement() -> None:
    result = summarise(samples(0.3, prompts=40), PAIRS, CONFIG, TRAINING)
    verdict = result["verdict"]
    assert verdict["better"] is True
    assert (verdict["mean"], verdict["tail"], verdict["incidents"]) == ("higher", "better", "fewer")
    assert verdict["headline"].startswith("The policy is better")
    vader = result["scorers"]["vader"]
    assert vader["difference"]["mean"]["value"] == pytest.approx(0.3, abs=0.01)
    share = vader["reference"]["incident_share"]["value"], vader["policy"]["incident_share"]["value"]
    assert result["loss_avoided_per_1000"]["value"] == pytest.approx(10_000 * (share[0] - share[1]))
    assert len(result["worst"]) == 10
    scores = [row["policy_score"] for row in result["worst"]]
    assert scores == sorted(scores)
    assert result["worst"][0]["reference_score"] < scores[0]
    assert "incident_share" not in result["scorers"]["length"]["policy"]
    json.dumps(result, allow_nan=False)


def test_a_score_of_which_smaller_is_better_is_mirrored() -> None:
    rows = samples(0.3)
    worst = max(row.scores["profanity"] for row in rows if row.model == "policy")
    profanity = summarise(rows, PAIRS, CONFIG, TRAINING)["scorers"]["profanity"]
    assert profanity["policy"]["worst"]["value"] == worst
    assert profanity["policy"]["tail_mean"]["value"] > profanity["policy"]["mean"]["value"]
    assert profanity["difference"]["mean"]["low"] <= profanity["difference"]["mean"]["high"] < 0


def test_equal_models_are_not_clearly_different() -> None:
    verdict = summarise(samples(0.0), PAIRS, CONFIG, TRAINING)["verdict"]
    assert (verdict["better"], verdict["worse"], verdict["degenerate"]) == (False, False, False)
    assert verdict["headline"] == "The policy is not clearly different from the reference."
    assert all("not clearly different" in reason for reason in verdict["reasons"])


def test_the_order_of_rows_does_not_matter() -> None:
    rows, pairs = samples(0.1), PAIRS
    assert summarise(rows, pairs, CONFIG, TRAINING) == summarise(rows[::-1], pairs[::-1], CONFIG, TRAINING)


@pytest.mark.parametrize(
    ("text", "pairs", "message"),
    [
        ("good film " * 20, PAIRS, "repeats itself"),
        ("great", PAIRS, "collapsed"),
        (None, [pair(0, -5.0, -40.0), pair(1, -6.0, -50.0)], "harder to predict"),
    ],
)
def test_decay_of_the_text_overrides_better_scores(text: str | None, pairs: list[PairScores], message: str) -> None:
    verdict = summarise(samples(0.4, text=text), pairs, CONFIG, TRAINING)["verdict"]
    assert verdict["better"] is False
    assert verdict["degenerate"] is True
    assert message in verdict["warnings"][0]
    assert "Reward accuracy alone" in verdict["warnings"][-1]
    assert "should not be used" in verdict["headline"]


def test_samples_that_do_not_belong_together_are_refused() -> None:
    rows = samples(0.1)
    cases = {
        "1 samples of the reference are missing, the first for prompt p000 and seed 0": rows[1:],
        "appears twice": [*rows, rows[0]],
        "no sample of the policy": [row for row in rows if row.model == "reference"],
        "2 different prompt sets": [replace(rows[0], prompt_set="other"), *rows[1:]],
        "no finite score 'vader'": [replace(rows[0], scores={}), *rows[1:]],
    }
    for message, bad in cases.items():
        with pytest.raises(EvaluationError, match=message):
            summarise(bad, PAIRS, CONFIG, TRAINING)
    with pytest.raises(EvaluationError, match="risk_label"):
        summarise(rows, PAIRS, CONFIG, {"method": "ra_dpo1"})


intervals = st.tuples(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5)).map(
    lambda three: Estimate(three[0], three[0] - three[1], three[0] + three[2])
)


@settings(max_examples=200)
@given(intervals, intervals, intervals, intervals)
def test_the_verdict_follows_from_the_intervals(
    mean: Estimate, tail: Estimate, incidents: Estimate, repetition: Estimate
) -> None:
    verdict = decide(
        {"mean": mean, "tail_mean": tail, "incident_share": incidents},
        policy_incidents=Estimate(0.0, 0.0, 0.0),
        degeneration=Degeneration(repetition, 100.0, 90.0, 0.05),
        scorer="vader",
        tail_fraction=0.1,
        incident_below=-0.5,
        num_prompts=80,
    )
    if verdict["better"]:
        assert max(mean.low, tail.low) > 0
        assert min(mean.high, tail.high) >= -1e-9
        assert incidents.low <= 1e-9
        assert repetition.low <= 0.02
    assert not (verdict["better"] and (verdict["worse"] or verdict["degenerate"]))
    headline = verdict["headline"]
    assert ("a higher average" in headline) <= (mean.low > 0)
    assert ("a lower average" in headline) <= (mean.high < 0)
    assert ("fewer incidents" in headline) <= (incidents.high < 0)
    assert "up to 3.7% of prompts" in verdict["reasons"][-1]
