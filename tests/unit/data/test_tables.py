from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import records
from pipeline.data.tables import arrow_schema, read_jsonl, read_table, write_json, write_jsonl, write_table
from pipeline.errors import ArtifactError
from pipeline.records import DroppedRow, PairRow, PairScores, PairTokens, SampleRow, ScoredSample

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INT32 = st.integers(-(2**31), 2**31 - 1)
SCORES = st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3)
FLOATS32 = st.lists(st.floats(width=32, allow_nan=False), max_size=4)

PAIR_TOKENS = st.builds(PairTokens, TEXT, TEXT, st.lists(INT32), st.lists(INT32), st.lists(INT32), TEXT)
SAMPLES = st.builds(
    SampleRow, TEXT, st.integers(0, 2**62), TEXT, TEXT, st.lists(INT32), st.lists(INT32), st.booleans(), SCORES
)
SCORED = st.builds(
    ScoredSample,
    model=st.sampled_from(["reference", "policy"]),
    prompt_id=TEXT,
    seed=INT32,
    prompt=TEXT,
    text=TEXT,
    finished=st.booleans(),
    scores=SCORES,
    tokens=st.lists(TEXT, max_size=3),
    log_ratio=FLOATS32,
    kl=FLOATS32,
    risk=FLOATS32,
    max_risk=st.floats(allow_nan=False),
    max_risk_position=INT32,
    prompt_set=TEXT,
)


@pytest.mark.parametrize(("cls", "rows"), [(PairTokens, PAIR_TOKENS), (SampleRow, SAMPLES), (ScoredSample, SCORED)])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, cls: type, rows: st.SearchStrategy) -> None:
    path = tmp_path_factory.mktemp("tables") / "rows.parquet"

    @settings(max_examples=40, deadline=None)
    @given(st.lists(rows, max_size=5))
    def check(written: list) -> None:
        write_table(path, written, cls)
        assert read_table(path, cls) == written

    check()


def test_every_record_has_a_schema_and_an_empty_table(tmp_path: Path) -> None:
    classes = [cls for cls in vars(records).values() if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__")]
    assert len(classes) >= 9
    for cls in classes:
        write_table(tmp_path / "empty.parquet", [], cls)
        assert read_table(tmp_path / "empty.parquet", cls) == []


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [PairRow("a", "g", "p", "c", "r", False), PairRow("b", "g", "", "c", "ü\n", True)]
    for name in ("one", "two"):
        write_table(tmp_path / name, rows, PairRow)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_scalar_floats_keep_64_bits_and_infinities(tmp_path: Path) -> None:
    row = PairScores("a", "g", 0.1, -math.inf, 1 / 3, 2.0, {"kl": 0.1}, {}, 3, 2**40)
    write_table(tmp_path / "t", [row], PairScores)
    assert read_table(tmp_path / "t", PairScores) == [row]


def test_other_record_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [], PairRow)
    with pytest.raises(ArtifactError, match=r"t\.parquet does not hold PairTokens rows"):
        read_table(tmp_path / "t.parquet", PairTokens)
    with pytest.raises(TypeError, match="holds PairRow rows, got DroppedRow"):
        write_table(tmp_path / "t.parquet", [DroppedRow("", "", "", "")], PairRow)


def test_none_is_refused(tmp_path: Path) -> None:
    row = PairRow("a", "g", None, "c", "r", False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"PairRow\.prompt is None"):
        write_table(tmp_path / "t", [row], PairRow)


def test_damaged_and_missing_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(ArtifactError, match="is missing"):
        read_table(path, PairRow)
    write_table(path, [PairRow("a", "g", "p", "c", "r", False)], PairRow)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_table(path, PairRow)


def test_unknown_annotation() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    Odd.__annotations__["value"] = complex
    with pytest.raises(TypeError, match=r"Odd\.value: no column type for complex"):
        arrow_schema(Odd)


def test_jsonl_round_trip_and_fault(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [DroppedRow("a.csv:2", "x", "empty prompt", "line\u2028separator\r\nand ü"), DroppedRow("b", "y", "z", "")]
    write_jsonl(path, rows)
    assert read_jsonl(path, DroppedRow) == rows
    assert read_jsonl(path)[0]["where"] == "a.csv:2"
    for damage in ('{"where": "a"}\n', "[1]\n", '{"whe'):
        path.write_text('{"where": "", "row_id": "", "reason": "", "detail": ""}\n' + damage)
        with pytest.raises(ArtifactError, match=r"d\.jsonl:2 is damaged"):
            read_jsonl(path, DroppedRow)
    with pytest.raises(ArtifactError, match="is missing"):
        read_jsonl(tmp_path / "none.jsonl")


def test_unwritable_place(tmp_path: Path) -> None:
    place = tmp_path / "no" / "such" / "folder"
    for write in (
        lambda: write_table(place, [], PairRow),
        lambda: write_jsonl(place, []),
        lambda: write_json(place, {}),
    ):
        with pytest.raises(ArtifactError, match="cannot write"):
            write()
