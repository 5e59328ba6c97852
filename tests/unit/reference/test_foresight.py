"""What is foreseen of a pass, against what its own parts then do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.data.tables import write_table
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.actor import PassSpec, ReferenceActor
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.donors import plan_of
from pipeline.reference.foresight import Foreseen, foresee
from pipeline.reference.key import cache_key, cache_parts, pass_key, row_contents
from pipeline.storage import open_storage

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import random_pairs

HELD = random_pairs(3, seed=5)


def tokens_of(pairs: Sequence[PairTokens]) -> int:
    return sum(len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "references") if request.param == "local" else str(request.getfixturevalue("s3_url"))


@pytest.fixture
def see(root: str, tmp_path: Path, built_model: Path) -> Callable[..., Foreseen | None]:
    """Foresees the pass over some pairs, after so many of its files have been computed."""

    def do(pairs: Sequence[PairTokens], files: int = 0, **reference: Any) -> Foreseen | None:
        run = RunConfig.model_validate(
            {
                "data": {"path": "x.jsonl", "max_prompt_tokens": 32, "max_response_tokens": 32},
                "model": {"path": str(built_model), "dtype": "float32"},
                "reference": {"rows_per_shard": 4, "root": root} | reference,
            }
        )
        write_table(tmp_path / "train.parquet", pairs, PairTokens)
        write_table(tmp_path / "validation.parquet", HELD, PairTokens)
        made_from = cache_parts(run, built_model, tmp_path)
        cache = ReferenceCache(Place(root).below(cache_key(made_from)))
        if files:
            cache.start({"key": cache_key(made_from), "made_from": made_from, "names": {}, "rows": {}})
            plan = plan_of(cache, Place(root), made_from, {}, row_contents(tmp_path), print)
            cache.settle(plan)
            spec = PassSpec(
                run.model_dump(mode="json"), str(built_model), str(tmp_path), cache.place.root, pass_key(made_from)
            )
            actor = ReferenceActor(spec)
            for part in plan.parts[:files]:
                actor.compute(part)
        return foresee(run, built_model, tmp_path, open_storage(str(tmp_path / "storage")))

    return do


def test_nothing_is_there(see: Callable[..., Foreseen | None]) -> None:
    pairs = random_pairs(10)
    assert see(pairs) == Foreseen(0, 0, 13, tokens_of([*pairs, *HELD]))


def test_an_unfinished_pass_and_one_that_takes_its_rows_over(
    see: Callable[..., Foreseen | None], root: str, tmp_path: Path
) -> None:
    """Two files of four pairs of ten are there; then one of them is wanted as it is, of the other three rows."""
    pairs = random_pairs(10)
    half = see(pairs, files=2)
    assert half is not None
    place = Place(root).below(*Place(root).folders())
    assert half.there_bytes == sum(place.size(name) or 0 for name in place.names())
    assert (half.taken_pairs, half.computed_pairs, half.computed_tokens) == (0, 5, tokens_of([*pairs[8:], *HELD]))

    other = see([*pairs[:7], *random_pairs(12)[10:]])
    assert other is not None
    [whole] = [name for name in place.names() if name.startswith("train-00000")]
    assert other.there_bytes == (place.size(whole) if place.is_local else 0), "a second name takes no room"
    new = [*random_pairs(12)[10:], *HELD]
    assert (other.taken_pairs, other.computed_pairs, other.computed_tokens) == (7, 5, tokens_of(new))
    assert not (tmp_path / "storage").exists()


def test_a_place_that_cannot_be_asked(see: Callable[..., Foreseen | None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert see(random_pairs(2), root=str(tmp_path / "file")) is None
