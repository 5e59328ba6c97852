from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.checks import RowError
from pipeline.data.encode import Encoder
from pipeline.data.splits import hash_key
from pipeline.data.tables import read_jsonl, read_table, write_table
from pipeline.data.tokenise import content_digest, tokenise
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.records import SPLITS, DroppedRow, PairRow, PairTokens, PromptTokens, TextRow, TextTokens

MakeTokenizer = Callable[..., Any]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LENGTHS = {"max_prompt_tokens": 12, "max_response_tokens": 16}


def config(**options: Any) -> DataConfig:
    return DataConfig(path="d.jsonl", **LENGTHS | options)


def rows(split: str, count: int = 6) -> list[PairRow]:
    return [
        PairRow(f"{split}{n}", f"{split}{n // 2}", f"{split[:5]} {n // 2}:", f"yes {n}", f"no {n}", False)
        for n in range(count)
    ]


def store(folder: Path, **splits: list[PairRow]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in SPLITS:
        write_table(folder / f"{name}.parquet", splits.get(name, rows(name)), PairRow)
    train = splits.get("train", rows("train"))
    texts = [TextRow(row.row_id, row.group, row.prompt, row.chosen, row.chat) for row in train]
    write_table(folder / "sft.parquet", texts, TextRow)
    return folder


def run(data: Path, out: Path, tokenizer: Any, context: int = 28, **options: Any) -> dict[str, list[PairTokens]]:
    out.mkdir()
    tokenise(config(**options), data, tokenizer, context, out)
    return {name: read_table(out / f"{name}.parquet", PairTokens) for name in SPLITS}


def test_ids_decode_to_the_texts_and_end_with_one_eos(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    splits = run(store(tmp_path / "data"), tmp_path / "out", tokenizer)
    by_id = {row.row_id: row for name in SPLITS for row in rows(name)}
    assert sum(map(len, splits.values())) == len(by_id)
    for pair in (pair for pairs in splits.values() for pair in pairs):
        row = by_id[pair.row_id]
        assert tokenizer.decode(pair.prompt_ids) == row.prompt
        assert tokenizer.decode(pair.chosen_ids) == row.chosen + "<eos>"
        assert tokenizer.decode(pair.rejected_ids) == row.rejected + "<eos>"
        assert pair.chosen_ids.count(tokenizer.eos_token_id) == 1
        assert pair.group == row.group
        assert pair.content == content_digest(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    sft = read_table(tmp_path / "out" / "sft.parquet", TextTokens)
    train = {pair.row_id: pair for pair in splits["train"]}
    assert {text.row_id: (text.prompt_ids, text.response_ids) for text in sft} == {
        row_id: (pair.prompt_ids, pair.chosen_ids) for row_id, pair in train.items()
    }


def test_stats_count_what_the_files_hold(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    train = [*rows("train", 18), PairRow("long", "g", "a prompt that is much too long to fit", "yes", "no" * 40, False)]
    train += [PairRow("cut", "g", "another prompt that is much too long", "yes", "no", False)]
    splits = run(store(tmp_path / "data", train=train), tmp_path / "out", make_tokenizer())
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stats["rows"] == {"train": 19, "validation": 6, "test": 6}
    assert stats["groups"] == {"train": 10, "validation": 3, "test": 3}
    for name in SPLITS:
        for part in ("prompt", "chosen", "rejected"):
            assert stats["tokens"][name][part] == sum(len(getattr(pair, f"{part}_ids")) for pair in splits[name])
    # The dropped pair's prompt is not counted as cut, but its chosen answer is still a fine-tuning text.
    assert stats["prompts_cut"] == {"train": 1, "validation": 0, "test": 0, "sft": 2}
    assert stats["sft"]["rows"] == 20
    assert stats["dropped"] == {"longer than the context": 1}
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl", DroppedRow)
    assert (dropped.where, dropped.row_id) == ("train.parquet:19", "long")


def test_prompt_keeps_its_end_and_its_bos(make_tokenizer: MakeTokenizer) -> None:
    ids = list(range(10, 30))
    assert Encoder(config(), make_tokenizer()).fit_prompt(ids) == ids[-12:]
    assert Encoder(config(), make_tokenizer(adds_bos=True)).fit_prompt([1, *ids]) == [1, *ids[-11:]]
    assert Encoder(config(max_prompt_tokens=1), make_tokenizer(adds_bos=True)).fit_prompt([1, *ids]) == ids[-1:]
    assert Encoder(config(), make_tokenizer()).fit_prompt(ids[:12]) == ids[:12]


def test_bos_comes_once_and_only_from_tokenizers_that_add_it(make_tokenizer: MakeTokenizer) -> None:
    plain = make_tokenizer()
    adding = Encoder(config(), make_tokenizer(adds_bos=True))
    naming = Encoder(config(), make_tokenizer(eos_token="<eos>", bos_token="<bos>"))
    bare = plain("Hi", add_special_tokens=False)["input_ids"]
    assert adding.prompts(["Hi", "<bos>Hi", ""]) == [[1, *bare], [1, *bare], [1]]
    assert naming.prompts(["Hi", ""]) == [bare, [1]]
    assert Encoder(config(), plain).prompts(["Hi", ""]) == [bare, [plain.eos_token_id]]
    assert adding.responses(["Hi"]) == [bare]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.booleans())
def test_fitted_responses(make_tokenizer: MakeTokenizer, length: int, limit: int, truncate: bool) -> None:
    options = config(max_response_tokens=limit, overlong="truncate" if truncate else "drop")
    encoder = Encoder(options, make_tokenizer())
    ids = list(range(1, length + 1))
    if length < limit:
        assert encoder.fit(ids, "chosen") == [*ids, 0]
    elif truncate:
        assert encoder.fit(ids, "chosen") == ids[:limit]
    else:
        with pytest.raises(RowError, match="longer than the context"):
            encoder.fit(ids, "chosen")


@pytest.mark.parametrize(
    ("chosen", "rejected", "options", "reason"),
    [
        ("x" * 40, "no", {}, "longer than the context"),
        ("no", "x" * 40, {}, "longer than the context"),
        ("x" * 40 + "a", "x" * 40 + "b", {"overlong": "truncate"}, "equal after truncation"),
        ("yes", "yes<eos>", {}, "equal after tokenisation"),
        ("yes<eos>but", "no", {}, "end-of-sequence token inside"),
        ("yes", "<eos>", {}, "empty response"),
    ],
)
def test_dropped_pairs(
    tmp_path: Path, make_tokenizer: MakeTokenizer, chosen: str, rejected: str, options: dict[str, Any], reason: str
) -> None:
    test = [*rows("test"), PairRow("bad", "b", "p", chosen, rejected, False)]
    data = store(tmp_path / "data", test=test)
    splits = run(data, tmp_path / "out", make_tokenizer(), **options)
    assert len(splits["test"]) == 6
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl", DroppedRow)
    assert (dropped.where, dropped.row_id, dropped.reason) == ("test.parquet:7", "bad", reason)
    with pytest.raises(DataError, match=rf"test\.parquet:7: {reason}"):
        run(data, tmp_path / "strict", make_tokenizer(), strict=True, **options)


def test_too_many_overlong_rows(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"24 of 24 rows .*longer than the context: 24, first at train\.parquet:1"):
        run(store(tmp_path / "data"), tmp_path / "out", make_tokenizer(), max_response_tokens=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_split_emptied_by_tokenisation(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    test = [PairRow("bad", "b", "p", "x" * 40, "no", False)]
    with pytest.raises(DataError, match=r"no pair is left for test after tokenisation"):
        run(store(tmp_path / "data", test=test), tmp_path / "out", make_tokenizer())


def test_limits_take_a_stable_subset_after_dropping(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    limits = {"max_train_pairs": 3, "max_validation_pairs": 2, "max_test_pairs": 1}
    full = run(store(tmp_path / "data"), tmp_path / "full", tokenizer)
    turned = {name: rows(name)[::-1] for name in SPLITS}
    few = run(store(tmp_path / "turned", **turned), tmp_path / "few", tokenizer, **limits)
    assert {name: pairs[: limits[f"max_{name}_pairs"]] for name, pairs in full.items()} == few
    for name in ("validation", "test"):
        files = [tmp_path / folder / f"prompts-{name}.parquet" for folder in ("full", "few")]
        assert read_table(files[0], PromptTokens) == read_table(files[1], PromptTokens) != []


def test_one_prompt_for_every_test_group(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    test = [*rows("test", 20), PairRow("shared", "another group", "test 3:", "yes", "no", False)]
    test += [PairRow(f"m{n}", "mixed", f"mixed {n}:", "yes", "no", False) for n in range(5)]
    splits = run(store(tmp_path / "data", test=test), tmp_path / "out", tokenizer)
    prompts = read_table(tmp_path / "out" / "prompts-test.parquet", PromptTokens)
    run(store(tmp_path / "turned", test=test[::-1]), tmp_path / "again", tokenizer)
    assert prompts == read_table(tmp_path / "again" / "prompts-test.parquet", PromptTokens)
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts) == 11
    assert [prompt.group for prompt in prompts] == sorted((prompt.group for prompt in prompts), key=hash_key)
    ids = {(pair.group, tuple(pair.prompt_ids)) for pair in splits["test"]}
    for prompt in prompts:
        assert (prompt.group, tuple(prompt.prompt_ids)) in ids
        assert prompt.prompt_id == hashlib.sha256(",".join(map(str, prompt.prompt_ids)).encode()).hexdigest()[:16]
        assert tokenizer.decode(prompt.prompt_ids) == prompt.prompt


def test_lengths_beyond_the_context(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.max_prompt_tokens \(12\) \+ data\.max_response_tokens \(16\) is 28.* 27"
    ):
        run(tmp_path, tmp_path / "out", make_tokenizer(), context=27)


CHAT = json.dumps([{"role": "user", "content": "Hi"}])


def test_chat_rows_go_through_the_template(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(config(), make_tokenizer(chat_template=CHAT_TEMPLATE))
    prompt, answers = encoder.render(CHAT, ["A joy", " Dull "], chat=True)
    assert prompt == "<|user|>\nHi<eos>\n<|assistant|>\n"
    assert answers == ["A joy", " Dull "]
    (ids,) = encoder.prompts([prompt])
    assert ids.count(0) == 1


def test_answer_stands_bare_when_the_template_does_not_continue_its_prompt(make_tokenizer: MakeTokenizer) -> None:
    template = CHAT_TEMPLATE.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<think>\n")
    encoder = Encoder(config(), make_tokenizer(chat_template=template))
    assert encoder.render(CHAT, ["A joy"], chat=True)[1] == ["A joy"]


def test_rows_that_the_template_refuses_are_dropped(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    system = json.dumps([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}])
    test = [*rows("test"), PairRow("bad", "b", system, "yes", "no", True), PairRow("ok", "c", CHAT, "yes", "no", True)]
    splits = run(store(tmp_path / "data", test=test), tmp_path / "out", make_tokenizer(chat_template=template))
    assert len(splits["test"]) == 7
    (dropped,) = read_jsonl(tmp_path / "out" / "dropped.jsonl", DroppedRow)
    assert (dropped.row_id, dropped.reason, dropped.detail) == ("bad", "refused by the chat template", "no system role")


def test_chat_rows_need_a_template(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    data = store(tmp_path / "data", test=[PairRow("c", "c", CHAT, "yes", "no", True)])
    with pytest.raises(ModelError, match=r"has no chat template: use an instruct model"):
        run(data, tmp_path / "out", make_tokenizer())


def test_tokenizer_needs_an_eos(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        run(store(tmp_path / "data"), tmp_path / "out", make_tokenizer(bos_token="<bos>"))


def test_equal_inputs_give_equal_bytes(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    for out in ("one", "two"):
        run(store(tmp_path / "data"), tmp_path / out, make_tokenizer())
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
