from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import BuildConfig, RunConfig
from pipeline.plan import (
    ModelShape,
    align_steps,
    built_shape,
    cache_shape,
    cost,
    counts_from_stats,
    dtype_bytes,
    model_dtype,
    sft_steps,
)
from tests.counts import counts_by_hand

MODEL = ModelShape(parameters=1_000, hidden_size=8, vocab_size=50, exact=True, basis="by hand")
COUNTS = counts_by_hand()
ALL_STAGES = ("data", "base", "tokens", "sft", "reference", "align", "evaluate", "report")


def run_with(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "model"}} | sections)


def test_a_run_by_hand() -> None:
    """The reference pass covers 37 pairs with 110 prompt and 340 response tokens.

    33 pairs in batches of 16 are 3 steps, twice; 55 tokens at 10 a text and 4 texts a step are 2 steps (1.4 up);
    5 prompts (of 80 wanted) with 4 seeds are 20 samples.
    """
    run = run_with(train={"epochs": 2}, sft={"tokens": 55, "batch_size": 4})
    costs = cost(run, COUNTS, MODEL, ALL_STAGES)
    assert costs.work is not None
    assert costs.work.reference_tokens == 110 + 340
    assert (costs.work.align_steps, costs.work.sft_steps, costs.work.samples_per_model) == (6, 2, 20)
    assert not costs.work.sft_steps_exact
    assert costs.saved_model_bytes == 4_000
    assert (costs.models_to_write, costs.models_to_write_bytes) == (3, 12_000)
    assert (costs.checkpoint_bytes, costs.checkpoints_held, costs.checkpoints_to_write_bytes) == (12_000, 3, 36_000)
    assert costs.reference_to_write_bytes == costs.work.reference_bytes["hidden"]
    assert costs.to_write_bytes == 12_000 + costs.reference_to_write_bytes
    assert costs.exact


def test_the_cache_follows_from_the_splits_of_the_reference_pass() -> None:
    run = run_with(reference={"rows_per_shard": 10})
    shape = cache_shape(run, COUNTS, MODEL)
    assert (shape.pairs, shape.files, shape.id_bytes, shape.positions) == (37, 4 + 1, 370, 340)
    assert (shape.hidden_size, shape.vocab_size, shape.number_bytes) == (8, 50, 4)
    more = dataclasses.replace(
        COUNTS, **{name: getattr(COUNTS, name) | {"test": 999} for name in ("pairs", "id_bytes")}
    )
    assert cache_shape(run, more, MODEL) == shape


def test_committed_stages_cost_nothing_more() -> None:
    run = run_with(sft={"steps": 3})
    assert cost(run, COUNTS, MODEL, ()).to_write_bytes == 0
    assert cost(run, COUNTS, MODEL, ("align", "evaluate", "report")).to_write_bytes == 4_000
    reference = cost(run, COUNTS, MODEL, ("reference",))
    assert reference.work is not None
    assert reference.to_write_bytes == reference.work.reference_bytes["hidden"] > 0
    assert reference.work == cost(run, COUNTS, MODEL, ()).work


def test_checkpoints_are_held_while_a_training_is_to_do() -> None:
    """One training runs at a time, and what a killed one has left is there already."""
    run = run_with(checkpoint={"keep": 3}, sft={"steps": 1, "guard": {"on_spike": "roll_back"}})
    held = [cost(run, COUNTS, MODEL, to_do).checkpoints_held for to_do in (ALL_STAGES, ("align",), ("sft",), ("base",))]
    assert held == [4, 4, 5, 0]
    for there, left in ((0, 48_000), (30_000, 18_000), (10**9, 0)):
        costs = cost(run, COUNTS, MODEL, ("align",), checkpoints_there_bytes=there)
        assert costs.checkpoints_to_write_bytes == left
        assert costs.to_write_bytes == 4_000


def test_what_is_there_of_a_cache_is_not_written_again() -> None:
    run = run_with()
    whole = cost(run, COUNTS, MODEL, ("reference",))
    half = cost(run, COUNTS, MODEL, ("reference",), reference_there_bytes=1_000)
    assert half.reference_to_write_bytes == whole.reference_to_write_bytes - 1_000
    assert half.reference_to_write_least_bytes == whole.reference_to_write_least_bytes - 1_000
    assert half.work == whole.work
    assert cost(run, COUNTS, MODEL, ("reference",), reference_there_bytes=10**9).to_write_bytes == 0


def test_a_mass_bounds_the_cache_from_above() -> None:
    costs = cost(run_with(reference={"tier": "topk", "top_mass": 0.9, "top_k": 10}), COUNTS, MODEL, ("reference",))
    # Nine entries of 8 bytes fewer at each of the 340 positions.
    assert costs.reference_to_write_bytes - costs.reference_to_write_least_bytes == 340 * 9 * 8
    fixed = cost(run_with(reference={"tier": "topk", "top_k": 10}), COUNTS, MODEL, ("reference",))
    assert fixed.reference_to_write_bytes == fixed.reference_to_write_least_bytes == costs.reference_to_write_bytes


@pytest.mark.parametrize("kind", ["gpus_per_worker", "gpus_per_actor"])
def test_one_dtype_for_all_processes_of_a_run(kind: str) -> None:
    on_gpu = {kind: 1}
    assert [model_dtype(run_with()), model_dtype(run_with(cluster=on_gpu))] == ["float32", "bfloat16"]
    for name, size in (("float32", 4), ("bfloat16", 2)):
        run = run_with(cluster=on_gpu, model={"path": "model", "dtype": name})
        assert (model_dtype(run), dtype_bytes(run)) == (name, size)
    costs = cost(run_with(cluster=on_gpu), COUNTS, MODEL, ALL_STAGES)
    assert (costs.saved_model_bytes, costs.checkpoint_bytes) == (2_000, 12_000)
    # A model that is built is always saved in float32.
    assert costs.models_to_write_bytes == 4_000 + 2 * 2_000
    assert costs.work is not None
    wide = cost(run_with(), COUNTS, MODEL, ALL_STAGES).work
    assert wide is not None
    assert wide.reference_bytes["hidden"] - costs.work.reference_bytes["hidden"] == (340 + 50) * 8 * 2
    assert wide.reference_bytes["topk"] == costs.work.reference_bytes["topk"]


def test_steps_stop_at_the_budget() -> None:
    assert align_steps(run_with(train={"max_steps": 2}), COUNTS) == 2
    assert align_steps(run_with(train={"max_steps": 200}), COUNTS) == 3
    assert sft_steps(run_with(sft={"steps": 9}), COUNTS) == 9
    assert sft_steps(run_with(), COUNTS) == 0
    # One batch holds all 21 texts, so a step sees 210 tokens.
    assert sft_steps(run_with(sft={"tokens": 421, "batch_size": 64}), COUNTS) == 3


def test_without_data_only_the_model_is_priced() -> None:
    costs = cost(run_with(), None, MODEL, ALL_STAGES)
    assert costs.work is None
    assert costs.to_write_bytes == 12_000


def test_the_stats_of_the_tokens_are_read_whole() -> None:
    stats = {
        "rows": {"train": 3, "validation": 2, "test": 1},
        "tokens": {
            "train": {"prompt": 1, "chosen": 10, "rejected": 100},
            "validation": {"prompt": 2, "chosen": 20, "rejected": 200},
            "test": {"prompt": 3, "chosen": 30, "rejected": 300},
        },
        "sft": {"rows": 4, "tokens": {"prompt": 5, "response": 50}},
        "prompts": {"validation": 2, "test": 1},
    }
    counts = counts_from_stats(stats, {"train": 1, "validation": 2, "test": 3})
    assert counts.pairs == stats["rows"]
    assert counts.prompt_tokens == {"train": 1, "validation": 2, "test": 3}
    assert counts.response_tokens == {"train": 110, "validation": 220, "test": 330}
    assert (counts.texts, counts.text_tokens, counts.exact) == (4, 55, True)
    assert counts.prompts == {"validation": 2, "test": 1}


@pytest.mark.parametrize(
    "build",
    [
        BuildConfig(),
        BuildConfig(vocab_size=301, hidden_size=12, num_layers=1, num_heads=3),
        BuildConfig(vocab_size=512, hidden_size=64, num_layers=3, num_heads=2),
    ],
)
def test_the_formula_of_the_built_model_counts_its_parameters(build: BuildConfig) -> None:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    with torch.device("meta"):
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=build.vocab_size,
                hidden_size=build.hidden_size,
                num_hidden_layers=build.num_layers,
                num_attention_heads=build.num_heads,
                intermediate_size=4 * build.hidden_size,
                max_position_embeddings=build.context_tokens,
            )
        )
    shape = built_shape(build)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.hidden_size, shape.vocab_size) == (build.hidden_size, build.vocab_size)


@given(st.lists(st.sampled_from(ALL_STAGES), unique=True), st.sampled_from(ALL_STAGES))
def test_a_stage_more_to_do_never_costs_less(to_do: list[str], more: str) -> None:
    before = cost(run_with(), COUNTS, MODEL, to_do)
    assert cost(run_with(), COUNTS, MODEL, [*to_do, more]).to_write_bytes >= before.to_write_bytes
