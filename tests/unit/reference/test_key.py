from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.data.tables import write_table
from pipeline.records import PairTokens
from pipeline.reference.key import SPLITS, cache_key, cache_parts

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import random_pairs


@pytest.fixture
def places(tmp_path: Path, built_model: Path) -> tuple[Path, Path]:
    """A model directory and tables of tokens that a test may change."""
    shutil.copytree(built_model, tmp_path / "model")
    (tmp_path / "tokens").mkdir()
    for split in SPLITS:
        write_table(tmp_path / "tokens" / f"{split}.parquet", random_pairs(5), PairTokens)
    return tmp_path / "model", tmp_path / "tokens"


def key(places: tuple[Path, Path], **sections: Any) -> str:
    run = RunConfig.model_validate({"data": {"path": "x.jsonl"}, "model": {"path": "m"}} | sections)
    return cache_key(cache_parts(run, *places))


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"method": "dpo", "beta": 0.5}},
        {"risk": {"measure": "erm", "level": 3.0}},
        {"train": {"epochs": 7, "batch_size": 3, "head_block_bytes": 1000, "optim": {"lr": 1.0}}},
        {"cluster": {"num_workers": 9, "cpus_per_actor": 4, "max_actors": 7}},
        {"evaluation": {"num_prompts": 3}},
        {"reference": {"root": "s3://somewhere/else"}},
        {"reference": {"top_k": 9}},
        {"model": {"path": "another/name"}},
        {"data": {"path": "another.jsonl"}},
    ],
)
def test_nothing_of_training_cluster_or_names_is_in_it(places: tuple[Path, Path], sections: dict[str, Any]) -> None:
    assert key(places, **sections) == key(places)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"path": "m", "dtype": "bfloat16"}},
        {"cluster": {"gpus_per_actor": 1}},
        {"data": {"path": "x.jsonl", "max_prompt_tokens": 9}},
        {"data": {"path": "x.jsonl", "overlong": "truncate"}},
        {"reference": {"tier": "scalar"}, "loss": {"method": "dpo"}},
        {"reference": {"tier": "topk"}},
        {"reference": {"tier": "topk", "top_k": 9}},
        {"reference": {"tier": "topk", "top_mass": 0.9}},
        {"reference": {"hidden_rows": "8bit"}},
        {"reference": {"threads": 2}},
        {"reference": {"batch_tokens": 99}},
        {"reference": {"rows_per_shard": 99}},
    ],
)
def test_whatever_decides_a_bit_is_in_it(places: tuple[Path, Path], sections: dict[str, Any]) -> None:
    assert key(places, **sections) != key(places)


def test_contents_count_and_paths_do_not(places: tuple[Path, Path]) -> None:
    model, tokens = places
    first = key(places)
    model = model.rename(model.with_name("elsewhere"))
    assert key((model, tokens)) == first
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (model / name).read_bytes()
        (model / name).write_bytes(before[:-1] + b" ")  # overwritten in place
        assert key((model, tokens)) != first, name
        (model / name).write_bytes(before)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert key((model, tokens)) != first
    (model / "chat_template.jinja").unlink()
    (model / "README.md").write_text("no part of what it computes")
    assert key((model, tokens)) == first
    write_table(tokens / "train.parquet", random_pairs(5, seed=1), PairTokens)
    assert key((model, tokens)) != first
