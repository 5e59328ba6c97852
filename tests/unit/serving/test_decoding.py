"""A batch gives each row what it would get alone, and what an evaluation gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from pipeline.config import EvaluationConfig
from pipeline.evaluation.sampling import row_seed, sample_batch
from pipeline.models.load import load_model, load_tokenizer
from pipeline.records import PromptTokens
from pipeline.serving.decoding import Batch, Piece, Row, Settings, next_tokens

CPU = torch.device("cpu")
PROMPTS = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65], [70, 71]]


def decoded(model: torch.nn.Module, tokenizer: object, rows: list[Row]) -> None:
    batch = Batch(model, tokenizer, rows, CPU)
    while len(batch):
        batch.step()


def row(prompt: list[int], seed: int, settings: Settings, told: list[Piece] | None = None) -> Row:
    def tell(piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece)
        if told is not None:
            told.append(piece)

    return Row(prompt, settings, seed, tell)


def test_a_seed_gives_the_output_of_an_evaluation(version_models: list[Path]) -> None:
    model, tokenizer = load_model(version_models[1], torch.float32), load_tokenizer(version_models[1])
    asked = [(PromptTokens(f"prompt {n}", "", "", ids), n) for n, ids in enumerate(PROMPTS)]
    config = EvaluationConfig(max_new_tokens=20, temperature=0.7)
    expected = sample_batch(model, tokenizer, asked, config, CPU)
    rows = [
        row(prompt.prompt_ids, row_seed(prompt.prompt_id, seed), Settings(20, temperature=0.7))
        for prompt, seed in asked
    ]
    decoded(model, tokenizer, rows)
    assert [one.ids for one in rows] == [sample.response_ids for sample in expected]
    assert [one.finished for one in rows] == [sample.finished for sample in expected]


def test_neighbours_change_nothing(version_models: list[Path]) -> None:
    """Of other lengths, with other settings, ending earlier or taken away."""
    model, tokenizer = load_model(version_models[2], torch.float32), load_tokenizer(version_models[2])
    kinds = [Settings(25), Settings(3, temperature=0), Settings(12, top_p=0.5), Settings(25, temperature=1.7)]
    alone = [row(prompt, seed, kind) for seed, (prompt, kind) in enumerate(zip(PROMPTS, kinds, strict=True))]
    for one in alone:
        decoded(model, tokenizer, [one])
    together = [row(prompt, seed, kind) for seed, (prompt, kind) in enumerate(zip(PROMPTS, kinds, strict=True))]
    batch = Batch(model, tokenizer, together, CPU)
    while len(batch):
        batch.step()
        together[2].cancelled = len(together[2].ids) >= 5  # which the step after that notices
    assert [one.ids for one in together] == [alone[0].ids, alone[1].ids, alone[2].ids[:6], alone[3].ids]


def test_temperature_zero_takes_the_likeliest(make_model: Callable[..., GPTNeoXForCausalLM]) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert all(next_tokens(logits, [row([1], seed, Settings(1, temperature=0))]).item() == 1 for seed in range(20))


def test_draws_have_the_model_s_probabilities_within_the_nucleus() -> None:
    """0.5, 0.3 and 0.2: a nucleus of 0.7 holds the first two, which it takes at 5:3."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    drawing = row([1], 0, Settings(1, top_p=0.7))
    drawn = [next_tokens(logits, [drawing]).item() for _ in range(4000)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 4000 == pytest.approx(5 / 8, abs=0.031), "four standard deviations"
    whole = row([1], 0, Settings(1))
    drawn = [next_tokens(logits, [whole]).item() for _ in range(4000)]
    assert drawn.count(2) / 4000 == pytest.approx(0.2, abs=0.026)


def test_log_probabilities_are_the_model_s_own(version_models: list[Path]) -> None:
    model, tokenizer = load_model(version_models[0], torch.float32), load_tokenizer(version_models[0])
    told: list[Piece] = []
    asked = row(PROMPTS[0], 1, Settings(6, temperature=0.5, logprobs=3), told)
    decoded(model, tokenizer, [asked])
    tokens = [token for piece in told for token in piece.tokens]
    ids = torch.tensor([[*PROMPTS[0], *asked.ids]])
    with torch.no_grad():
        expected = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=1)
    for place, token in enumerate(tokens, start=len(PROMPTS[0]) - 1):
        assert token.logprob == pytest.approx(expected[place, token.id].item(), abs=1e-4)
        best = expected[place].topk(3).values.tolist()
        assert [value for _, value in token.top] == pytest.approx(best, abs=1e-4)
