"""The gate's decision: every limit by itself, what is in production, how much can be shown, and how it is told."""

import ast
import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError, EvaluationError
from pipeline.evaluation.statistics import FloatArray
from pipeline.release import wording
from pipeline.release.bounds import drawn_level
from pipeline.release.evidence import Evidence, read_evidence
from pipeline.release.gate import Condition, Decision, decide, judge, score_range
from pipeline.release.wording import explain
from pipeline.release_config import GateConfig
from tests.unit.release.evaluations import RANGE, evidence, pair, sample, written

POLICY = GateConfig(resamples=2000)
PROMPTS = 200
PAIRS = 2 * PROMPTS
NUMBER = np.arange(PROMPTS)[:, None]
NAMES = ("mean", "tail", "drift", "incidents", "repetition", "length", "bits")
LIMITS = dict(
    zip(
        NAMES,
        ("mean_drop", "tail_drop", "max_drift", "max_incidents", "max_repetition_rise", "min_length", "max_bits_rise"),
        strict=True,
    )
)


def reference(prompts: int = PROMPTS, seeds: int = 2) -> FloatArray:
    """Scores spread over -0.4 to 0.8; samples of a prompt lie close together."""
    return np.linspace(-0.4, 0.8, prompts)[:, None] + np.linspace(0.0, 0.05, seeds)


def alike(prompts: int = PROMPTS, **changed: Any) -> Evidence:
    """A policy that differs from the reference by small, balanced amounts."""
    other = reference(prompts)
    return evidence(other + 0.05 * np.where(np.arange(prompts) % 2, 1, -1)[:, None], other, **changed)


def lower(by: float, **changed: Any) -> Evidence:
    return evidence(reference() - by, reference(), **changed)


def broken(name: str) -> Evidence:
    """A policy that clearly breaks this limit."""
    other = reference()
    ones = np.ones_like(other)
    high = np.clip(other + 0.6, -1.0, 1.0)
    return {
        "mean": lambda: lower(0.5),
        "tail": lambda: evidence(np.where(NUMBER < 60, -0.9, high + 0.3), high, incident_below=-0.95),
        "drift": lambda: alike(drift=np.full(PAIRS, 60.0)),
        "incidents": lambda: evidence(np.where(NUMBER < 80, -0.55, other + 0.1), other),
        "repetition": lambda: alike(repetition=0.5 * ones),
        "length": lambda: alike(length=20.0 * ones),
        "bits": lambda: alike(bits=np.full(PAIRS, 450.0)),
    }[name]()


def of(decision: Decision, model: str, against: str = "reference") -> dict[str, Condition]:
    chosen = [one for one in decision.conditions if (one.of, one.against) == (model, against)]
    assert len({one.name for one in chosen}) == len(chosen)
    return {one.name: one for one in chosen}


def gate(candidate: Evidence, incumbent: Evidence | None = None, **options: Any) -> Decision:
    return decide(candidate, incumbent, POLICY.model_copy(update=options), RANGE)


def test_a_policy_like_the_reference_is_promoted() -> None:
    decision = gate(alike())
    assert decision.outcome == "promote"
    assert tuple(of(decision, "candidate")) == NAMES
    assert all(one.holds and not one.violated for one in decision.conditions)
    assert decision.power > 0.9
    assert not decision.too_few


def test_the_reference_itself_is_promoted() -> None:
    assert gate(evidence(reference(), reference())).outcome == "promote"


def test_figures_of_a_policy_by_hand() -> None:
    """Values as observed; bounds on the worse side of them."""
    found = of(gate(lower(0.1, drift=np.full(PAIRS, 3.0), bits=np.full(PAIRS, 309.0))), "candidate")
    values = {
        "mean": -0.1,
        "tail": -0.1,
        "drift": 3.0,
        "incidents": 0.0,
        "repetition": 0.0,
        "length": 1.0,
        "bits": 0.03,
    }
    for name, value in values.items():
        assert found[name].value == pytest.approx(value), name
        worse = found[name].bound < value if name in ("mean", "tail", "length") else found[name].bound > value
        assert worse, name
    limits = [found[name].limit for name in NAMES]
    assert limits == [-0.15, -0.45, 25.0, 0.15, 0.1, 0.5, 0.1]
    assert [found[name].unit for name in NAMES] == ["prompts"] * 2 + ["groups"] + ["prompts"] * 3 + ["groups"]


def test_one_response_or_group_counts_up_to_its_cap() -> None:
    """Drift of 10^6 nats in one of 400 pairs counts as 250; bits of one of 200 groups as 50% more."""
    drift, bits = np.zeros(PAIRS), np.full(PAIRS, 300.0)
    drift[7], bits[7] = 1e6, 1e6
    found = of(gate(alike(drift=drift, bits=bits)), "candidate")
    assert found["drift"].value == pytest.approx(250 / 400)
    assert found["bits"].value == pytest.approx(0.5 / 200)


def test_scores_outside_the_range_count_as_its_ends() -> None:
    other = reference()
    found = of(gate(evidence(np.where(other > 0.7, 50.0, other), other)), "candidate")
    assert found["mean"].value == pytest.approx(np.where(other > 0.7, 1.0 - other, 0.0).mean())


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_by_itself(name: str) -> None:
    candidate = broken(name)
    found = of(gate(candidate), "candidate")
    assert gate(candidate).outcome == "hold"
    assert found[name].violated
    assert not found[name].holds
    only = gate(candidate, **{LIMITS[other]: None for other in NAMES if other != name})
    assert [one.name for one in only.conditions] == [name]
    assert only.outcome == "hold"
    without = gate(candidate, **{LIMITS[name]: None})
    assert name not in of(without, "candidate")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_production_is_rolled_back(name: str) -> None:
    """A policy that breaks the limit and is judged again; a candidate that holds all limits replaces it."""
    bad = broken(name)
    decision = gate(bad, bad)
    assert decision.outcome == "roll_back"
    assert of(decision, "incumbent")[name].violated
    # The candidate is held against what it replaces, too: here that scores no better than the reference.
    if name not in ("tail", "incidents"):
        replaced = gate(alike(**_settings(bad)), bad)
        assert (replaced.outcome, replaced.incumbent_violates) == ("promote", True)
        assert "breaks it" in explain(replaced.as_dict())[0]


def _settings(one: Evidence) -> dict[str, Any]:
    return {"incident_below": one.incident_below}


def test_a_good_policy_in_production_stays() -> None:
    decision = gate(lower(0.5), alike())
    assert decision.outcome == "hold"
    assert not decision.incumbent_violates
    assert decision.incumbent_confidence == pytest.approx(1 - 0.05 / 7)
    assert all(one.power is None and one.units_needed is None for one in of(decision, "incumbent").values())


def test_the_candidate_is_held_against_what_is_in_production() -> None:
    better = evidence(np.minimum(reference() + 1.2, 1.0), reference())
    decision = gate(alike(), better)
    assert decision.outcome == "hold"
    assert all(one.holds for one in of(decision, "candidate").values())
    assert {name: one.violated for name, one in of(decision, "candidate", "incumbent").items()} == {
        "mean": True,
        "tail": True,
    }
    assert gate(better, better).outcome == "promote"


def test_incidents_of_the_reference_are_no_fault_of_what_is_in_production() -> None:
    many = np.where(NUMBER < 80, -0.6, 0.5) + np.zeros((PROMPTS, 2))
    decision = gate(evidence(many, many), evidence(many, many))
    incidents = of(decision, "incumbent")["incidents"]
    assert incidents.bound > incidents.limit
    assert not incidents.violated
    assert decision.outcome == "hold"
    assert of(decision, "candidate")["incidents"].units_needed is None
    assert decision.units_needed is None
    assert "even the reference would not hold" in explain(decision.as_dict())[1][-1]


def test_other_prompts_than_those_of_production_are_refused() -> None:
    with pytest.raises(EvaluationError, match="prompt_set"):
        gate(alike(), alike(prompt_set="other"))


def test_limits_that_so_few_prompts_cannot_show() -> None:
    """A policy without any fault: 20 prompts leave less than the limit of 15% unseen, 19 do not."""
    level = drawn_level(POLICY.confidence, POLICY.resamples)
    least = math.ceil(math.log(level) / math.log(0.85))
    for prompts in (least - 1, least):
        found = of(gate(evidence(np.ones((prompts, 1)), np.ones((prompts, 1)))), "candidate")["incidents"]
        assert found.units_least == least
        # The draws' own noise decides when the number is only just enough.
        assert found.bound == pytest.approx(1 - level ** (1 / prompts), rel=0.05)
    few = gate(evidence(np.ones((10, 1)), np.ones((10, 1))))
    assert few.too_few
    assert few.outcome == "hold"
    assert few.power == 0.0
    sentences = explain(few.as_dict())[1]
    assert any(f"at least {least} are needed: share of outputs" in sentence for sentence in sentences)
    assert few.units_needed is not None
    assert few.groups_needed is not None
    assert gate(evidence(np.ones((n := few.units_needed + few.groups_needed, 1)), np.ones((n, 1)))).outcome == "promote"


def test_more_prompts_give_more_power_as_foretold() -> None:
    """What a small evaluation says of a larger one is about what that says of itself."""
    rng = np.random.default_rng(5)

    def noisy(prompts: int) -> Evidence:
        mood = rng.normal(0.1, 0.3, (prompts, 1))
        own, other = (np.clip(mood + rng.normal(0, 0.3, (prompts, 2)), -1, 1) for _ in range(2))
        return evidence(own, other)

    small = gate(noisy(60), mean_drop=0.1, tail_drop=0.4)
    assert small.too_few
    assert small.units_needed is not None
    assert small.units_needed > 60
    assert gate(noisy(small.units_needed // 2), mean_drop=0.1, tail_drop=0.4).power < 0.7
    assert gate(noisy(2 * small.units_needed), mean_drop=0.1, tail_drop=0.4).power > 0.9
    assert f"About {small.units_needed} prompts" in explain(small.as_dict())[1][-1]


def test_silence_of_the_reference_has_no_length_to_keep() -> None:
    silent = np.zeros((PROMPTS, 2))
    assert "length" not in of(gate(alike(length=silent, reference_length=silent)), "candidate")


def test_equal_evaluations_give_equal_decisions() -> None:
    assert gate(lower(0.1), alike()) == gate(lower(0.1), alike())


def test_a_decision_is_strict_json_and_complete() -> None:
    decision = decide(
        lower(0.5), alike(), GateConfig(resamples=500, mean_drop=None, tail_drop=None), (-math.inf, math.inf)
    )
    plain = decision.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["score_range"] == [None, None]
    assert {"outcome", "conditions", "power", "too_few", "units_needed", "confidence", "policy"} <= set(plain)
    assert plain["policy"]["max_drift"] == 25.0
    assert len(plain["conditions"]) == len(decision.conditions)


def test_a_drop_needs_a_finite_range() -> None:
    with pytest.raises(EvaluationError, match="finite range"):
        decide(alike(), None, POLICY, (-math.inf, math.inf))


def test_from_files_to_a_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    samples = [
        sample(model, f"p{prompt:03}", seed, float(np.round(rng.uniform(0.0, 0.9), 3)), "a quiet film about the sea")
        for model in ("policy", "reference")
        for prompt in range(120)
        for seed in (0, 1)
    ]
    pairs = [pair(f"r{row}", f"g{row // 2}", drift=2.0, rise=0.01) for row in range(240)]
    found = read_evidence(written(tmp_path / "evaluation", samples, pairs))
    decision = decide(found, None, POLICY, score_range(EvaluationConfig(), POLICY))
    assert decision.outcome == "promote"
    headline, sentences = explain(json.loads(json.dumps(decision.as_dict())))
    assert headline == "Promote: the candidate holds every limit of the policy."
    assert len(sentences) == len(NAMES)
    assert sentences[2].startswith("Holds: drift from the reference (nats a held-out response) is 2.00, with 95%")
    assert sentences[6].startswith("Holds: rise of bits per byte of held-out real text is +1.0%, with 95% confidence")


@pytest.mark.parametrize("name", NAMES)
def test_words_name_what_failed(name: str) -> None:
    headline, sentences = explain(gate(broken(name)).as_dict())
    assert headline.startswith("Hold: the candidate breaks the policy, or is not shown to hold it (")
    told = [sentence for sentence in sentences if sentence.startswith("Broken: ")]
    assert told
    assert any(sentence[len("Broken: ") :].split(" is ")[0] in headline for sentence in told)
    back, reasons = explain(gate(broken(name), broken(name)).as_dict())
    assert back.startswith("Roll back to the reference: what is in production breaks the policy (")
    assert any(reason.startswith("In production: ") for reason in reasons)


def test_every_template_is_a_literal_that_is_translated() -> None:
    """An extractor finds what `tr` is called with, and nothing is said that did not pass through it."""
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(wording)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tr"
    ]
    literals = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert len(calls) >= len(literals) > 20
    assert all(isinstance(call.args[0], ast.Constant) for call in calls)
    asked: set[str] = set()

    def translated(template: str) -> str:
        asked.add(template)
        return template if template in ("; ", "{first} {second}") else f"<{template}>"

    few = gate(alike(12), alike(12))
    for decision in (few, gate(lower(0.2), broken("mean"))):
        headline, sentences = explain(decision.as_dict(), translated)
        assert all(text.startswith("<") and text.endswith(">") for text in (headline, *sentences))
    assert asked <= literals


class TestScoreRange:
    """Least and largest score: the policy's, the scorer's, or a refusal that says what to do."""

    def test_of_policy_and_scorer(self) -> None:
        evaluation = EvaluationConfig()
        assert score_range(evaluation, GateConfig()) == (-1.0, 1.0)
        assert score_range(evaluation, GateConfig(score_range=(-2.0, 3.0))) == (-2.0, 3.0)

    def test_of_an_own_function(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = "def {0}(prompts, texts):\n    return [0.0 for _ in texts]\n"
        text = source.format("known") + "known.score_range = (-3, 4)\n" + source.format("unknown")
        (tmp_path / "own_scores_of_the_gate.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        known, unknown = (
            EvaluationConfig(scorers=(name,), primary_scorer=name)
            for name in ("own_scores_of_the_gate:known", "own_scores_of_the_gate:unknown")
        )
        assert score_range(known, GateConfig()) == (-3.0, 4.0)
        with pytest.raises(ConfigError, match=r"score_range = .*--gate.score_range, or --registry.enabled false"):
            score_range(unknown, GateConfig())
        assert score_range(unknown, GateConfig(mean_drop=None, tail_drop=None)) == (-math.inf, math.inf)

    @pytest.mark.parametrize("option", ["mean_drop", "tail_drop"])
    def test_a_limit_that_nothing_could_break(self, option: str) -> None:
        with pytest.raises(ConfigError, match=rf"gate.{option} is 2, but scores of 'vader' lie between -1 and 1"):
            score_range(EvaluationConfig(), GateConfig(**{option: 2.0}))

    def test_incidents_that_no_score_could_be(self) -> None:
        with pytest.raises(ConfigError, match=r"incident_below is -1.*--gate.max_incidents none"):
            score_range(EvaluationConfig(incident_below=-1.0), GateConfig())
        score_range(EvaluationConfig(incident_below=-1.0), GateConfig(max_incidents=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.999}, "set it to 25000 or more"),
        ({"score_range": (0.0, math.inf)}, "two finite numbers"),
        ({"score_range": (1.0, -1.0)}, "the smaller one first"),
        ({"score_range": (0.0, 0.4)}, r"tail_drop is 0.45"),
        (
            {"mean_drop": None, "tail_drop": None, "max_drift": None, "max_incidents": None},
            "everything would be promoted",
        ),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateConfig(**options)


@pytest.mark.parametrize("name", NAMES)
def test_production_alone_goes_back_for_each_limit_that_it_breaks(name: str) -> None:
    decision = judge(broken(name), POLICY, RANGE)
    assert decision.outcome == "roll_back"
    violated = {one.name for one in decision.conditions if one.violated}
    assert name in violated
    if name in ("drift", "bits"):
        beside = of(gate(alike(), broken(name)), "incumbent")
        assert of(decision, "incumbent") == beside, "as beside a candidate"
    headline, sentences = explain(decision.as_dict())
    assert headline.startswith("Roll back to the reference: what is in production breaks the policy (")
    assert len(sentences) == len(violated)


def test_production_alone_is_kept_when_it_breaks_nothing() -> None:
    decision = judge(alike(), POLICY, RANGE)
    assert (decision.outcome, decision.incumbent_violates) == ("hold", False)
    assert all(one.of == "incumbent" for one in decision.conditions)
    assert explain(decision.as_dict())[0].startswith("Keep: ")
    with pytest.raises(EvaluationError, match="finite range"):
        judge(alike(), POLICY, (-math.inf, math.inf))
