from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import BuildConfig, RunConfig
from pipeline.plan import (
    ModelShape,
    TokenCounts,
    align_steps,
    built_shape,
    bytes_text,
    cost,
    counts_from_stats,
    dtype_bytes,
    reference_bytes,
    refusal,
    sft_steps,
)

MODEL = ModelShape(parameters=1_000, hidden_size=8, vocab_size=50, exact=True, basis="by hand")
COUNTS = TokenCounts(
    pairs={"train": 33, "validation": 4, "test": 7},
    prompt_tokens={"train": 100, "validation": 10, "test": 20},
    response_tokens={"train": 300, "validation": 40, "test": 70},
    texts=21,
    text_tokens=210,
    prompts=5,
    exact=True,
    basis="by hand",
)
ALL_STAGES = ("data", "base", "tokens", "sft", "reference", "align", "evaluate", "report")


def run_with(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "model"}} | sections)


def test_a_run_by_hand() -> None:
    """33 + 4 pairs of 2 x 4 bytes are 296; 340 response tokens and 50 head rows of 8 float32 are 12,480 more.

    33 pairs in batches of 16 are 3 steps, twice; 55 tokens at 10 a text and 4 texts a step are 2 steps (1.4 up);
    5 prompts (of 80 wanted) with 4 seeds are 20 samples.
    """
    run = run_with(train={"epochs": 2}, sft={"tokens": 55, "batch_size": 4})
    costs = cost(run, COUNTS, MODEL, ALL_STAGES)
    assert costs.work is not None
    assert costs.work.reference_bytes == {"hidden": 12_776, "scalar": 296}
    assert (costs.work.align_steps, costs.work.sft_steps, costs.work.samples_per_model) == (6, 2, 20)
    assert not costs.work.sft_steps_exact
    assert costs.checkpoint_bytes == 4_000
    assert (costs.checkpoints_to_write, costs.models_to_write_bytes) == (3, 12_000)
    assert costs.to_write_bytes == 12_000 + 12_776
    assert costs.exact


def test_committed_stages_cost_nothing_more() -> None:
    run = run_with(sft={"steps": 3})
    assert cost(run, COUNTS, MODEL, ()).to_write_bytes == 0
    assert cost(run, COUNTS, MODEL, ("align", "evaluate", "report")).to_write_bytes == 4_000
    assert cost(run, COUNTS, MODEL, ("reference",)).to_write_bytes == 12_776
    assert cost(run, COUNTS, MODEL, ("reference",)).work == cost(run, COUNTS, MODEL, ()).work


def test_numbers_take_the_bytes_of_the_device_they_are_computed_on() -> None:
    assert [dtype_bytes("auto", on_gpu) for on_gpu in (False, True)] == [4, 2]
    assert [dtype_bytes("bfloat16", on_gpu) for on_gpu in (False, True)] == [2, 2]
    assert [dtype_bytes("float32", on_gpu) for on_gpu in (False, True)] == [4, 4]
    costs = cost(run_with(cluster={"gpus_per_worker": 1}), COUNTS, MODEL, ALL_STAGES)
    assert costs.checkpoint_bytes == 2_000
    assert costs.work is not None
    assert costs.work.reference_bytes["hidden"] == 12_776
    # A model that is built is always saved in float32.
    assert costs.models_to_write_bytes == 4_000 + 2 * 2_000


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
        "prompts": 1,
    }
    counts = counts_from_stats(stats)
    assert counts.pairs == stats["rows"]
    assert counts.prompt_tokens == {"train": 1, "validation": 2, "test": 3}
    assert counts.response_tokens == {"train": 110, "validation": 220, "test": 330}
    assert (counts.texts, counts.text_tokens, counts.prompts, counts.exact) == (4, 55, 1, True)


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


positive = st.integers(1, 10**6)


@given(positive, positive, positive, positive, st.sampled_from([2, 4]))
def test_hidden_states_never_take_less_than_scalars(
    pairs: int, extra_tokens: int, hidden_size: int, vocab_size: int, state_bytes: int
) -> None:
    counts = dataclasses.replace(
        COUNTS,
        pairs={"train": pairs, "validation": 1, "test": 5},
        response_tokens={"train": 2 * pairs + extra_tokens, "validation": 2, "test": 9},
    )
    model = dataclasses.replace(MODEL, hidden_size=hidden_size, vocab_size=vocab_size)
    scalar = reference_bytes("scalar", counts, model, state_bytes)
    assert scalar == 8 * (pairs + 1)
    assert reference_bytes("hidden", counts, model, state_bytes) > scalar
    # The test split is never precomputed.
    more = dataclasses.replace(
        counts, pairs=counts.pairs | {"test": 99}, response_tokens=counts.response_tokens | {"test": 999}
    )
    assert reference_bytes("hidden", more, model, state_bytes) == reference_bytes("hidden", counts, model, state_bytes)


@given(st.lists(st.sampled_from(ALL_STAGES), unique=True), st.sampled_from(ALL_STAGES))
def test_a_stage_more_to_do_never_costs_less(to_do: list[str], more: str) -> None:
    before = cost(run_with(), COUNTS, MODEL, to_do)
    assert cost(run_with(), COUNTS, MODEL, [*to_do, more]).to_write_bytes >= before.to_write_bytes


def test_only_what_clearly_does_not_fit_is_refused() -> None:
    run = run_with()
    exact = cost(run, COUNTS, MODEL, ALL_STAGES)
    needed = exact.to_write_bytes
    assert refusal(exact, run, needed, "/runs") is None
    message = refusal(exact, run, needed - 1, "/runs")
    assert message is not None
    assert message.startswith("storage /runs has 24.8 kB free, but the run would write 24.8 kB")
    estimate = cost(run, dataclasses.replace(COUNTS, exact=False), MODEL, ALL_STAGES)
    assert refusal(estimate, run, needed - 1, "/runs") is None
    refused = refusal(estimate, run, needed // 2, "/runs")
    assert refused is not None
    assert "would write about 24.8 kB" in refused


def test_a_refusal_names_what_helps() -> None:
    run = run_with()
    message = refusal(cost(run, COUNTS, MODEL, ALL_STAGES), run, 100, "/runs") or ""
    for remedy in ("free some space", "--storage", "--data.max_train_pairs", "--reference.tier scalar"):
        assert remedy in message
    # Where the models alone are too large, a smaller reference would not help.
    models = refusal(cost(run, COUNTS, MODEL, ("align",)), run, 100, "/runs") or ""
    assert "max_train_pairs" not in models
    assert "tier" not in models
    dpo = run_with(loss={"method": "dpo"}, reference={"tier": "scalar"})
    assert "tier" not in (refusal(cost(dpo, COUNTS, MODEL, ("reference",)), dpo, 100, "/runs") or "")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (63_700_000, "63.7 MB"),
        (1_600_000_000_000, "1.6 TB"),
        (2 * 10**18, "2,000.0 PB"),
    ],
)
def test_bytes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert bytes_text(count) == text
