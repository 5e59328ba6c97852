"""What the actor refuses and commits, hosted in this process (Ray has no part in it)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.data.tables import write_table
from pipeline.errors import DataError, ModelError
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.actor import PassSpec, ReferenceActor
from pipeline.reference.plan import HEAD, Part, Piece

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import random_pairs


@pytest.fixture
def spec(tmp_path: Path, built_model: Path) -> PassSpec:
    run = RunConfig.model_validate(
        {
            "data": {"path": "x.jsonl", "max_prompt_tokens": 32, "max_response_tokens": 32},
            "model": {"path": str(built_model), "dtype": "float32"},
            "reference": {"rows_per_shard": 4},
        }
    )
    write_table(tmp_path / "train.parquet", random_pairs(6), PairTokens)
    return PassSpec(run.model_dump(mode="json"), str(built_model), str(tmp_path), str(tmp_path / "cache"), "0" * 32)


def test_a_file_that_is_there_is_not_computed_again(spec: PassSpec) -> None:
    actor = ReferenceActor(spec)
    parts = [Part(Piece("train", 0), ((0, 4),)), Part(Piece("train", 1), ((5, 6), (4, 5))), Part(Piece(HEAD))]
    written = {part.piece: actor.compute(part) for part in parts}
    assert [one.computed_rows for one in written.values()] == [4, 2, 0]
    marks = {path.name: path.stat().st_ino for path in Path(spec.place).glob("*.safetensors")}
    assert set(marks) == {one.file.name for one in written.values()}
    another = ReferenceActor(spec)
    again = {part.piece: another.compute(part) for part in parts}
    assert {piece: one.file for piece, one in again.items()} == {piece: one.file for piece, one in written.items()}
    assert {one.computed_rows for one in again.values()} == {0}
    assert marks == {path.name: path.stat().st_ino for path in Path(spec.place).glob("*.safetensors")}
    assert Place(spec.place).names() == sorted(marks), "nothing half-written is left"


def test_a_token_beyond_the_vocabulary_is_refused(spec: PassSpec) -> None:
    far = PairTokens("far", "g", [1, 2], [3, 4000], [4], "x")
    write_table(Path(spec.tokens_dir) / "train.parquet", [*random_pairs(3), far], PairTokens)
    with pytest.raises(ModelError, match=r"row 'far' holds token 4000, but the reference's vocabulary ends at \d+"):
        ReferenceActor(spec).compute(Part(Piece("train"), ((0, 4),)))
    assert Place(spec.place).names() == []


def test_a_row_longer_than_the_context_is_refused(spec: PassSpec) -> None:
    long = PairTokens("long", "g", [1] * 40, [3] * 25, [4], "x")
    write_table(Path(spec.tokens_dir) / "train.parquet", [long], PairTokens)
    with pytest.raises(DataError, match="row 'long' has 65 tokens, more than the reference's context of 64"):
        ReferenceActor(spec).compute(Part(Piece("train"), ((0, 1),)))
