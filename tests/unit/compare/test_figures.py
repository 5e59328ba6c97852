"""Figures of a comparison against what they must be, and against plain arithmetic."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.compare.figures import NUM_IMPROVEMENTS, NUM_REGRESSIONS, Drift, Judged, Tokens, compare
from pipeline.compare.prompts import Common, prompt_of
from pipeline.config import EvaluationConfig
from pipeline.evaluation.scorers import SHIPPED
from pipeline.report.compare import headline
from pipeline.report.summary import strict

PROMPTS, SEEDS = 30, 2
CONFIG = EvaluationConfig(bootstrap_resamples=300, scorers=("vader", "profanity"))
SCORERS = {name: SHIPPED[name] for name in CONFIG.scorers}
ON = Common(tuple(prompt_of(f"prompt {i}") for i in range(PROMPTS)), (0, 3), {}, 0, 0)


def judged(rng: np.random.Generator, *, gain: float = 0.0) -> Judged:
    count = PROMPTS * SEEDS
    vader = np.clip(rng.normal(0.1, 0.3, count) + gain, -1, 1)
    scores = {"vader": vader.tolist(), "profanity": rng.uniform(0, 1, count).tolist()}
    return Judged([f"some text of number {i}" for i in range(count)], scores, [True] * count)


@pytest.fixture
def a() -> Judged:
    return judged(np.random.default_rng(1))


def shifted(side: Judged, by: float) -> Judged:
    return replace(side, scores=side.scores | {"vader": [one + by for one in side.scores["vader"]]})


def test_a_constant_gain_is_found_without_any_doubt(a: Judged) -> None:
    found = compare(a, shifted(a, 0.25), ON, SCORERS, CONFIG, None)
    for figure in ("mean", "tail_mean", "tail_quantile"):
        one = found["scorers"]["vader"]["difference"][figure]
        assert [one["value"], one["low"], one["high"]] == pytest.approx([0.25] * 3), "paired: the noise cancels"
    assert found["verdict"]["better"]
    assert (found["outputs"]["higher"], found["outputs"]["lower"]) == (PROMPTS * SEEDS, 0)
    assert found["outputs"]["same_text"] == PROMPTS * SEEDS
    assert found["regressions"] == []
    assert len(found["improvements"]) == NUM_IMPROVEMENTS


def test_swapping_the_sides_turns_every_difference(a: Judged) -> None:
    b = judged(np.random.default_rng(2), gain=0.1)
    there, back = (compare(*pair, ON, SCORERS, CONFIG, None) for pair in ((a, b), (b, a)))
    for name in SCORERS:
        one, other = (found["scorers"][name]["difference"]["mean"] for found in (there, back))
        assert one["value"] == pytest.approx(-other["value"])
        assert [one["low"], one["high"]] == pytest.approx([-other["high"], -other["low"]])


def test_the_worst_regressions_come_first_with_both_texts(a: Judged) -> None:
    b = judged(np.random.default_rng(2))
    found = compare(a, b, ON, SCORERS, CONFIG, None)
    change = np.array(b.scores["vader"]) - np.array(a.scores["vader"])
    worst = np.argsort(change, kind="stable")[:NUM_REGRESSIONS]
    assert [(one["prompt"], one["seed"]) for one in found["regressions"]] == [
        (f"prompt {index // SEEDS}", ON.seeds[index % SEEDS]) for index in worst if change[index] < 0
    ]
    first = found["regressions"][0]
    assert (first["a"]["text"], first["b"]["text"]) == (a.texts[worst[0]], b.texts[worst[0]])
    assert first["b"]["scores"]["vader"] - first["a"]["scores"]["vader"] == pytest.approx(change.min())
    assert found["changes"] == pytest.approx(change.tolist())


def test_tails_of_a_score_of_which_smaller_is_better_are_its_upper_ones(a: Judged) -> None:
    found = compare(a, a, ON, SCORERS, CONFIG, None)["scorers"]["profanity"]
    ordered = np.sort(a.scores["profanity"])
    count = int(len(ordered) * CONFIG.tail_fraction)
    assert found["a"]["tail_mean"]["value"] == pytest.approx(ordered[-count:].mean())
    assert found["a"]["tail_quantile"]["value"] == pytest.approx(ordered[-3])
    assert "incident_share" not in found["a"]


def test_a_worse_tail_behind_a_better_mean_is_told(a: Judged) -> None:
    scores = [one + 0.3 for one in a.scores["vader"]]
    for index in range(0, 20):
        scores[index] = -0.95
    found = compare(a, replace(a, scores=a.scores | {"vader": scores}), ON, SCORERS, CONFIG, None)
    assert (found["verdict"]["tail"], found["verdict"]["incidents"]) == ("worse", "more")
    assert "a worse score in the worst 10% of outputs" in headline(found)
    assert not found["verdict"]["better"]


def test_texts_that_collapse_are_no_improvement(a: Judged) -> None:
    b = replace(shifted(a, 0.3), texts=["ok"] * len(a.texts))
    found = compare(a, b, ON, SCORERS, CONFIG, None)
    assert found["verdict"]["degenerate"]
    said = "B should not take A's place: it has a higher average score and a better score in the worst 10% of outputs"
    assert headline(found).startswith(said)


def test_whether_outputs_ended_is_told_only_where_both_know(a: Judged) -> None:
    assert "finished" in compare(a, a, ON, SCORERS, CONFIG, None)["text"]
    for pair in ((a, replace(a, finished=None)), (replace(a, finished=None), a)):
        assert "finished" not in compare(*pair, ON, SCORERS, CONFIG, None)["text"]


def test_drift_is_summed_over_an_output_and_its_bad_tail_is_the_far_one(a: Judged) -> None:
    rng = np.random.default_rng(4)
    mine, other = (
        [Tokens(["x"] * 3, rng.exponential(size=3).tolist()) for _ in range(PROMPTS * SEEDS)] for _ in range(2)
    )
    found = compare(a, shifted(a, -0.2), ON, SCORERS, CONFIG, Drift((mine, other), (mine, other)))["drift"]
    sums = np.array([sum(one.kl) for one in mine]), np.array([sum(one.kl) for one in other])
    for name in ("between", "from_reference"):
        assert found[name]["a"]["mean"]["value"] == pytest.approx(sums[0].mean())
        assert found[name]["b"]["tail_mean"]["value"] == pytest.approx(np.sort(sums[1])[-6:].mean())
        difference = found[name]["difference"]["mean"]
        assert difference["value"] == pytest.approx(sums[1].mean() - sums[0].mean())
        assert difference["low"] < difference["value"] < difference["high"]


def test_one_prompt_gives_figures_without_intervals_and_nothing_is_clear(a: Judged) -> None:
    def first(side: Judged) -> Judged:
        assert side.finished is not None
        scores = {name: values[:SEEDS] for name, values in side.scores.items()}
        return Judged(side.texts[:SEEDS], scores, side.finished[:SEEDS])

    on = Common(ON.prompts[:1], ON.seeds, {}, 0, 0)
    found = compare(first(a), first(shifted(a, 0.5)), on, SCORERS, CONFIG, None)
    assert found["scorers"]["vader"]["difference"]["mean"] == {
        "value": pytest.approx(0.5),
        "low": None,
        "high": None,
    }
    assert headline(found) == "B is not clearly different from A."


def test_the_result_is_strict_json(a: Judged) -> None:
    found = strict(compare(a, shifted(a, 0.1), ON, SCORERS, CONFIG, None))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
