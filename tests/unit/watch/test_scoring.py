"""Production's outputs as version and reference see them: real models, in this process."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from watching import RUN

from pipeline.data.encode import Encoder
from pipeline.evaluation.stage import ScoringActor
from pipeline.models.contents import tokenizer_contents
from pipeline.models.load import load_tokenizer
from pipeline.records import SampleRow
from pipeline.traffic import LogRow
from pipeline.watch.scored import NO_TOKENS, Scored
from pipeline.watch.scoring import WatchActor

PROMPT, OUTPUT = "A joy from ", "start to end. Dull."
LIMITS = {"data": {"path": "p.jsonl", "max_prompt_tokens": 8, "max_response_tokens": 40}}


@pytest.fixture(scope="module")
def version(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built model with other weights."""
    directory = tmp_path_factory.mktemp("version") / "model"
    shutil.copytree(built_model, directory)
    weights = load_file(directory / "model.safetensors")
    torch.manual_seed(1)
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}
    save_file(changed, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    base = RUN.model_dump(mode="json")
    changes = {"data": base["data"] | LIMITS["data"], "model": base["model"] | {"dtype": "float32"}}
    return base | changes | {"evaluation": base["evaluation"] | {"scorers": ["vader", "length"]}}


@pytest.fixture(scope="module")
def actor(version: Path, built_model: Path, run: dict[str, Any]) -> WatchActor:
    return WatchActor(run, str(built_model), str(version), tokenizer_contents(version))


def scored(actor: WatchActor, **about: Any) -> Scored:
    [found] = actor.score([LogRow(**({"prompt": PROMPT, "output": OUTPUT} | about))])
    assert isinstance(found, Scored), found
    return found


def test_it_is_what_the_evaluation_says(
    actor: WatchActor, version: Path, built_model: Path, run: dict[str, Any]
) -> None:
    """The sums over the tokens that the evaluation of the same text gives."""
    tokenizer = load_tokenizer(version)
    encoder = Encoder(RUN.data.model_copy(update=LIMITS["data"]), tokenizer)
    [prompt], [output] = encoder.prompts([PROMPT]), encoder.responses([OUTPUT])
    ids = [*output, tokenizer.eos_token_id]
    sample = SampleRow("p", 0, PROMPT, OUTPUT, encoder.fit_prompt(prompt), ids, True, {})
    judge = ScoringActor(run, str(built_model), str(version), "")
    [expected] = judge.samples("policy", [sample])
    found = scored(actor)
    assert found.measures["risk"] == pytest.approx(sum(expected.risk), rel=1e-5)
    assert found.measures["kl"] == pytest.approx(sum(expected.kl), rel=1e-5)
    assert found.measures["risk"] > found.measures["kl"] > 0.01, "CVaR is above the mean"
    assert found.tokens == expected.tokens
    assert found.risks == pytest.approx(expected.risk, rel=1e-5)
    assert found.measures["length"] == len(OUTPUT)
    assert found.measures["tokens"] == len(ids)
    given = scored(
        actor,
        prompt_ids=tuple(sample.prompt_ids),
        output_ids=tuple(ids),
        tokenizer=tokenizer_contents(version),
    )
    assert given.measures["risk"] == pytest.approx(found.measures["risk"], rel=1e-6)
    assert not given.anew


def test_an_output_that_was_cut_has_no_end(actor: WatchActor) -> None:
    assert scored(actor, finished=False).measures["tokens"] == scored(actor, finished=True).measures["tokens"] - 1


@pytest.mark.parametrize(("ids", "digest"), [((1, 2), "another"), ((1, 2), None), ((1, 10**6), "ours")])
def test_ids_of_another_tokenizer_are_made_anew(
    actor: WatchActor, version: Path, ids: tuple[int, ...], digest: str | None
) -> None:
    tokenizer = tokenizer_contents(version) if digest == "ours" else digest
    found = scored(actor, output_ids=ids, tokenizer=tokenizer)
    assert found.anew
    assert found.tokens == scored(actor).tokens


def test_what_is_longer_than_the_context_is_cut(actor: WatchActor) -> None:
    assert not scored(actor).cut
    long_prompt = scored(actor, prompt="far away " * 50 + PROMPT)
    assert long_prompt.cut
    assert long_prompt.tokens == scored(actor).tokens
    long_output = scored(actor, output=OUTPUT * 30)
    assert long_output.cut
    assert len(long_output.tokens) > 40
    assert len(long_output.tokens) <= 64


def test_what_cannot_be_scored_does_not_stop_the_others(actor: WatchActor, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scored(actor)

    def picky(prompts: list[str], texts: list[str]) -> list[float]:
        if any("poison" in text for text in texts):
            raise RuntimeError("no")
        return [1.0] * len(texts)

    monkeypatch.setattr(
        actor, "_scorers", {name: dataclasses.replace(one, function=picky) for name, one in actor._scorers.items()}
    )
    rows = [
        LogRow(PROMPT, OUTPUT),
        LogRow(PROMPT, "poison"),
        LogRow(PROMPT, "", finished=False),
        LogRow(PROMPT, OUTPUT),
    ]
    first, second, third, fourth = actor.score(rows)
    assert isinstance(first, Scored)
    assert isinstance(fourth, Scored)
    assert first.measures["risk"] == pytest.approx(plain.measures["risk"], rel=1e-5)
    assert second == "not scored by the models (EvaluationError)"
    assert third == NO_TOKENS


def test_what_is_no_finite_number_is_not_scored(actor: WatchActor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an overflow: it could be neither ranked nor written down."""
    score = actor._both.score

    def overflows(prompts: Any, outputs: Any) -> Any:
        found = score(prompts, outputs)
        for risk in found[-1].risk.values():
            risk[0] = float("inf")
        return found

    monkeypatch.setattr(actor._both, "score", overflows)
    first, second = actor.score([LogRow(PROMPT, OUTPUT), LogRow(PROMPT, OUTPUT)])
    assert isinstance(first, Scored)
    assert second == "not scored by the models (not a finite number)"
