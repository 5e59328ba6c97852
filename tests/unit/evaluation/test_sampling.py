from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers import GenerationConfig

from pipeline.config import EvaluationConfig
from pipeline.evaluation.sampling import SeededGumbel, prompt_set_digest, row_seed, sample_batch
from pipeline.records import PromptTokens, SampleRow

EOS = 39


class Letters:
    """A tokenizer of 40 letters; the last is the end of the sequence."""

    eos_token_id = EOS
    pad_token_id = None

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join("$" if i == EOS else chr(65 + i) for i in ids if not (skip_special_tokens and i == EOS))


PROMPTS = [PromptTokens(f"p{n}", "g", "text", [1 + (3 * n + k) % 30 for k in range(1 + n % 4)]) for n in range(12)]


def sample(model: nn.Module, batch: list[tuple[PromptTokens, int]], **options: Any) -> list[SampleRow]:
    config = EvaluationConfig(**({"max_new_tokens": 12} | options))
    return sample_batch(model, Letters(), batch, config, torch.device("cpu"))


class TestGumbel:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_frequencies_are_the_softmax(self, temperature: float) -> None:
        logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
        count = 20_000
        scores = SeededGumbel(list(range(count)), temperature)(torch.empty(0), logits.expand(count, 5))
        found = np.bincount(scores.argmax(-1).numpy(), minlength=5)
        expected = (logits.double() / temperature).softmax(-1).numpy() * count
        assert stats.chisquare(found, expected).pvalue > 1e-3

    def test_successive_steps_are_independent(self) -> None:
        count = 6_000
        gumbel = SeededGumbel(list(range(count)), 1.0)
        first, second = (gumbel(torch.empty(0), torch.zeros(count, 3)).argmax(-1).numpy() for _ in range(2))
        table = np.zeros((3, 3))
        np.add.at(table, (first, second), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3

    def test_a_token_without_probability_is_never_drawn(self) -> None:
        logits = torch.tensor([0.0, -torch.inf, 0.0]).expand(500, 3)
        assert not (SeededGumbel(list(range(500)), 1.0)(torch.empty(0), logits).argmax(-1) == 1).any()

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=5, unique=True), st.integers(0, 4))
    def test_noise_belongs_to_the_row(self, seeds: list[int], pick: int) -> None:
        row = pick % len(seeds)
        together, alone = SeededGumbel(seeds, 1.0), SeededGumbel([seeds[row]], 1.0)
        for _ in range(3):
            noise = together(torch.empty(0), torch.zeros(len(seeds), 7))
            assert torch.equal(noise[row], alone(torch.empty(0), torch.zeros(1, 7))[0])

    def test_the_noise_is_the_same_on_every_machine(self) -> None:
        assert row_seed("p", 0) == 0x426A3B5EBE27A4C5365D1E6DA00CEEE
        assert len({row_seed("p", 0), row_seed("p", 1), row_seed("q", 0), row_seed("p:1", 0), row_seed("p1", 0)}) == 5


class TestSample:
    def test_neighbours_do_not_count(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model()
        work = [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
        together = sample(model, work)
        assert len({tuple(row.response_ids) for row in together}) > 20
        for row, item in zip(together, work, strict=True):
            assert sample(model, [item]) == [row]
        assert sample(model, work[::-1]) == together[::-1]

    def test_a_sample_says_what_it_is(self, make_model: Callable[..., nn.Module]) -> None:
        [row] = sample(make_model(), [(PROMPTS[3], 7)])
        assert (row.prompt_id, row.seed, row.prompt, row.prompt_ids) == ("p3", 7, "text", PROMPTS[3].prompt_ids)
        assert row.scores == {}

    def test_the_end_of_sequence(self, make_model: Callable[..., nn.Module]) -> None:
        rows = sample(make_model(), [(prompt, seed) for prompt in PROMPTS for seed in range(30)])
        assert {row.finished for row in rows} == {True, False}
        for row in rows:
            assert row.finished == (EOS in row.response_ids)
            assert EOS not in row.response_ids[:-1]
            assert len(row.response_ids) == 12 or row.finished
            assert "$" not in row.text
            assert len(row.text) == len(row.response_ids) - row.finished

    def test_an_end_at_once(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model(tie_word_embeddings=False)
        head = nn.Linear(16, 40)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[EOS] = 1e4
        model.set_output_embeddings(head)  # type: ignore[operator]
        [row] = sample(model, [(PROMPTS[0], 0)])
        assert (row.response_ids, row.text, row.finished) == ([EOS], "", True)

    def test_first_tokens_follow_the_models_distribution(self, make_model: Callable[..., nn.Module]) -> None:
        model, count = make_model(), 4_000
        rows = sample(model, [(PROMPTS[2], seed) for seed in range(count)], max_new_tokens=1, temperature=1.5)
        found = np.bincount([row.response_ids[0] for row in rows], minlength=40)
        with torch.no_grad():
            logits = model(torch.tensor([PROMPTS[2].prompt_ids])).logits[0, -1].double()
        expected = (logits / 1.5).softmax(-1).numpy() * count
        assert expected.min() > 5
        assert stats.chisquare(found, expected).pvalue > 1e-3

    def test_a_low_temperature_is_greedy(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model()
        rows = sample(model, [(PROMPTS[5], seed) for seed in range(5)], temperature=1e-4, max_new_tokens=3)
        assert len({tuple(row.response_ids) for row in rows}) == 1

    def test_common_random_numbers_for_every_model(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model()
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.001)
        work = [(prompt, 0) for prompt in PROMPTS]
        same = [
            a.response_ids[0] == b.response_ids[0]
            for a, b in zip(sample(model, work), sample(other, work), strict=True)
        ]
        assert sum(same) >= 10

    def test_what_the_model_directory_says_about_generating_does_not_count(
        self, make_model: Callable[..., nn.Module]
    ) -> None:
        work = [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
        expected = sample(make_model(), work)
        model = make_model()
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=0.1,
            top_k=1,
            repetition_penalty=5.0,
            min_new_tokens=10,
            suppress_tokens=[1, 2, 3],
        )
        assert sample(model, work) == expected


def test_a_set_of_prompts_is_known_by_ids_and_order() -> None:
    assert prompt_set_digest(["a", "b"]) == prompt_set_digest(("a", "b"))
    assert len({prompt_set_digest(ids) for ids in (["a", "b"], ["b", "a"], ["a"], ["ab"], [])}) == 5
