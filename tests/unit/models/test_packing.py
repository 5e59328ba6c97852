from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from pipeline.models.packing import can_pack, pack_pairs, packed_length, packed_states, separate_states
from pipeline.records import PairTokens

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import CPU, random_pairs

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def mistral(window: int | None) -> nn.Module:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()


def gpt_neo(window: int) -> nn.Module:
    torch.manual_seed(0)
    size = {"vocab_size": 40, "max_position_embeddings": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    kinds = [[["global", "local"], 1]]
    return GPTNeoForCausalLM(GPTNeoConfig(**size, window_size=window, attention_types=kinds)).eval()


def bloom() -> nn.Module:
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)).eval()


def test_a_row_by_hand() -> None:
    pair = PairTokens("a", "g", [5, 6], [7, 8, 9], [3, 4], "x")
    packed = pack_pairs([pair], 0)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 3]]  # the last token of each response is only predicted
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.attends[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    [(chosen, rejected)] = packed.predicting
    assert chosen.tolist() == [1, 2, 3]
    assert rejected.tolist() == [1, 4]
    assert packed_length(pair) == 5


@pytest.mark.parametrize("make", [llama, gpt2, lambda: mistral(None), lambda: mistral(64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_agree(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model, pairs = make().to(dtype), random_pairs(9)
    pairs.append(PairTokens("one", "g", [1], [2], [3], "x"))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for one, other in zip(packed_states(model, pairs, 0, CPU), separate_states(model, pairs, 0, CPU), strict=True):
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, **tolerance)
    assert can_pack(model, 0, CPU, 24, 20)


def test_a_response_never_sees_the_other(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    one = PairTokens("a", "g", [5, 6], [7, 8, 9], [3, 4, 2], "x")
    other = PairTokens("a", "g", [5, 6], [9, 9, 9], [3, 4, 2], "x")
    (_, first), (_, second) = packed_states(model, [one], 0, CPU)[0], packed_states(model, [other], 0, CPU)[0]
    assert torch.equal(first, second)


def test_a_model_that_does_not_bear_it_is_told(make_model: Callable[..., nn.Module]) -> None:
    assert not can_pack(bloom(), 0, CPU, 24, 20), "positions by distance see the chosen response's length"
    assert not can_pack(mistral(24), 0, CPU, 24, 20), "the mask of a window would be lost"
    assert can_pack(mistral(44), 0, CPU, 24, 20), "no row outgrows the window"
    assert not can_pack(gpt_neo(32), 0, CPU, 24, 20), "a window over columns would hide the prompt from the rejected"
    assert can_pack(gpt_neo(64), 0, CPU, 24, 20)
    assert can_pack(make_model(), 0, CPU, 24, 20)
