"""The benchmark of the reference pass: packing, ratios, and every measurement on a tiny model."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.material import Material, data_config, make_material
from pipeline.bench.pass_speed import prompts_once, run_config, timed_pass
from pipeline.bench.reference_config import TIERS, ReferenceBenchmark
from pipeline.bench.reference_figures import (
    STEP_TEXTS,
    TIER_TEXTS,
    pass_figures,
    prompt_figures,
    ratio,
    step_figures,
    tables,
    tier_figures,
)
from pipeline.bench.review_packing import joined, packed_reviews
from pipeline.bench.step_speed import BASELINE, LIVE, STEPS, LiveReference, time_steps
from pipeline.config import LossConfig, RiskConfig
from pipeline.data.reviews import Review
from pipeline.data.tables import read_table
from pipeline.errors import ConfigError, DataError
from pipeline.models.load import load_model, output_head
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.actor import PassSpec, ReferenceActor
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.compute import computed_positions
from pipeline.reference.cover import fixed_parts
from pipeline.reference.key import row_contents
from pipeline.reference.manifest import contents
from pipeline.reference.plan import Plan
from pipeline.reference.reader import OpenCache
from pipeline.training.preference import PreferenceTask

JOB = Path(__file__).resolve().parents[3] / "jobs" / "benchmark.py"
TINY: dict[str, Any] = {
    "pass_pairs": 5,
    "shards": 3,
    "steps": 2,
    "rounds": 2,
    "threads": 1,
    "max_prompt_tokens": 24,
    "max_response_tokens": 16,
}


def words(text: str) -> int:
    return len(text.split())


def reviews(count: int, length: int = 7) -> list[Review]:
    return [
        Review(f"file:{i}", f"film {i % 9}", ("fresh", "rotten")[i % 5 // 3], " ".join([f"w{i}"] * length))
        for i in range(count)
    ]


# -- packing -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=60, max_size=60), st.integers(1, 40))
def test_texts_are_joined_to_about_the_target(lengths: list[int], target: int) -> None:
    texts = iter([" ".join(["w"] * length) for length in lengths])
    total = words(joined(texts, words, target))
    taken = 60 - sum(1 for _ in texts)
    assert total == sum(lengths[:taken])
    before = total - lengths[taken - 1]
    assert taken == 1 or target - before > before / (taken - 1) / 2
    assert target - total <= total / taken / 2
    assert taken == 1 or before < target


def test_pairs_are_as_long_as_asked_and_use_no_review_twice() -> None:
    given_reviews = reviews(400)
    pairs = packed_reviews(given_reviews, 12, words, 30, 20)
    assert pairs == packed_reviews(given_reviews[::-1], 12, words, 30, 20)
    assert all(words(pair.chosen) == words(pair.rejected) == 21 for pair in pairs)
    used = [text.split() for pair in pairs for text in (pair.prompt.partition(":\n")[2], pair.chosen, pair.rejected)]
    assert all(26 <= words(pair.prompt) <= 34 for pair in pairs)
    each = [word for text in used for word in set(text)]
    assert len(each) == len(set(each))
    label = {f"w{i}": one.label for i, one in enumerate(given_reviews)}
    assert {label[word] for pair in pairs for word in pair.chosen.split()} == {"fresh"}
    assert {label[word] for pair in pairs for word in pair.rejected.split()} == {"rotten"}


def test_too_few_reviews_are_said() -> None:
    with pytest.raises(DataError, match=r"make only \d+ pairs .* but 50 are asked for"):
        packed_reviews(reviews(60), 50, words, 30, 20)


# -- figures -------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds() -> None:
    assert ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0]) == {"median": 2.0, "lowest": 1.5, "highest": 4.0}
    found = pass_figures({1: [10.0, 12.0, 8.0], 2: [18.0, 24.0, 15.0]}, {1: [1.0, 2.0, 4.0], 2: [3.0] * 3})
    assert found["scaling"] == {"median": 1.8, "lowest": 1.8, "highest": 2.0}
    assert [record["startup_s"] for record in found["passes"]] == [2.0, 3.0]
    assert pass_figures({1: [10.0]}, {1: [1.0]})["scaling"] is None


def test_prompts_once_are_compared_with_the_same_pairs_computed_twice() -> None:
    found = prompt_figures(100, {"once": [2.0, 4.0, 2.0], "separate": [3.0, 8.0, 3.0]})
    assert found is not None
    assert (found["tokens_per_s_once"], found["speedup"]["median"], found["speedup"]["highest"]) == (50, 1.5, 2.0)
    assert prompt_figures(100, {"once": [], "separate": []}) is None


def test_what_hidden_states_save_is_a_share_of_what_a_live_reference_adds() -> None:
    """A live reference adds 4 - 2 = 2 s, hidden states 2.5 - 2 = 0.5 s: three quarters are saved."""
    seconds = {"scalar": [2.0] * 3, "hidden": [2.5, 2.0, 3.0], "live": [4.0] * 3}
    found = step_figures(seconds, "scalar", "live")
    assert found["recovered"] == 0.75
    assert found["steps"][1]["ratio"] == {"median": 1.25, "lowest": 1.0, "highest": 1.5}
    assert step_figures({name: [1.0] for name in seconds}, "scalar", "live")["recovered"] is None


def test_every_tier_and_step_has_its_text() -> None:
    assert list(TIER_TEXTS) == list(TIERS)
    assert list(STEP_TEXTS) == list(STEPS)
    assert set(STEPS) <= {*TIERS, LIVE}


# -- measurements --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> ReferenceBenchmark:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"Number {i}", "chosen": f"A joy {i}.", "rejected": f"Dull {i}."} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return ReferenceBenchmark(pairs=str(path), models=(str(built_model),), **TINY)


@pytest.fixture(scope="module")
def material(config: ReferenceBenchmark, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(config, config.models[0], tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def caches(config: ReferenceBenchmark, material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Places of a finished cache of every tier, written in this process by the actor of the pass."""
    places = {}
    for tier, options in TIERS.items():
        run = run_config(config, material, 1, **options)
        place = str(tmp_path_factory.mktemp(tier))
        paths = (str(material.model_dir), str(material.tokens_dir), place)
        spec = PassSpec(run.model_dump(mode="json"), *paths, "0" * 32)
        actor, cache = ReferenceActor(spec), ReferenceCache(Place(place))
        per_shard = run.reference.rows_per_shard
        plan = Plan(tuple(fixed_parts({"train": material.num_pairs}, per_shard, run.reference.tier == "hidden")))
        files = {part.piece: actor.compute(part).file for part in plan.parts}
        cache.finish(contents(cache, spec.pass_key, plan, files, row_contents(material.tokens_dir)))
        places[tier] = place
    return places


def test_material_is_the_pairs_apart_from_those_that_warm_up(config: ReferenceBenchmark, material: Material) -> None:
    timed = read_table(material.tokens_dir / "train.parquet", PairTokens)
    warm_up = read_table(material.tokens_dir / "validation.parquet", PairTokens)
    assert (len(timed), len(warm_up), material.num_pairs) == (5, 2, 5)
    assert not {pair.row_id for pair in timed} & {pair.row_id for pair in warm_up}
    assert material.tokens["response"]["most"] <= config.max_response_tokens


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "hh"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]}, "pairs"),
    ],
)
def test_the_format_is_guessed(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    assert data_config(ReferenceBenchmark(pairs=str(path))).format == found


def test_pairs_that_are_too_long_for_the_model_are_refused_by_the_name_of_the_option(
    config: ReferenceBenchmark, tmp_path: Path
) -> None:
    longer = config.model_copy(update={"max_prompt_tokens": 900})
    with pytest.raises(ConfigError, match="--max_prompt_tokens"):
        make_material(longer, config.models[0], tmp_path)


def test_both_ways_to_compute_prompts_are_timed(config: ReferenceBenchmark, material: Material) -> None:
    threads = torch.get_num_threads()
    found = prompts_once(config, material)
    torch.set_num_threads(threads)
    assert {name: len(times) for name, times in found["seconds"].items()} == {"once": 2, "separate": 2}
    assert min(time for times in found["seconds"].values() for time in times) > 0
    assert found["tokens"] > 5 * 10


def test_sizes_and_errors_come_from_the_files(material: Material, caches: dict[str, str]) -> None:
    found = {}
    for tier, place in caches.items():
        manifest = ReferenceCache(Place(place)).manifest()
        assert manifest is not None
        found[tier] = tier_figures(tier, manifest)
    pairs = read_table(material.tokens_dir / "train.parquet", PairTokens)
    positions = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    assert {record["positions"] for record in found.values()} == {positions}
    size = {tier: sum(path.stat().st_size for path in Path(place).glob("train-*")) for tier, place in caches.items()}
    assert {tier: record["bytes"] for tier, record in found.items()} == size
    assert found["hidden"]["bytes"] - found["scalar"]["bytes"] == pytest.approx(4 * 16 * positions, rel=0.2)
    assert found["hidden_8bit"]["bytes_per_position"] < found["hidden"]["bytes_per_position"]
    assert [tier for tier, record in found.items() if record["error"]] == ["hidden_8bit"]
    assert found["hidden_8bit"]["error"]["kl_max"] >= found["hidden_8bit"]["error"]["kl_mean"] > 0


def test_a_live_reference_says_what_the_cache_says(
    config: ReferenceBenchmark, material: Material, caches: dict[str, str]
) -> None:
    pairs = read_table(material.tokens_dir / "train.parquet", PairTokens)
    model = load_model(material.model_dir, torch.float32)
    cached = OpenCache(Place(caches["hidden"]), device=torch.device("cpu"), dtype=torch.float32).rows("train", pairs)
    loss, risk = LossConfig(), RiskConfig(level=config.level)
    hidden = torch.randn(6, 60, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for reference in (LiveReference(model), cached):
        task = PreferenceTask(pairs, reference, loss, risk, 0, 40_000)
        batch = task.collate([0, 2, None])
        results.append(task.objective(hidden[:, : batch["mask"].shape[1]], output_head(model), batch)[1].detach())
        assert task.metric_names[-1] == "pairs"
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_every_step_is_timed_in_every_round(
    config: ReferenceBenchmark, material: Material, caches: dict[str, str]
) -> None:
    """In a process of its own, for DeepSpeed marks the one that it is in."""
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        seconds = alone.apply_async(time_steps, (config, material, caches)).get(timeout=200)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(STEPS, config.steps)
    assert min(time for times in seconds.values() for time in times) > 0


@pytest.mark.long
def test_passes_by_actors_are_timed_and_tables_drawn(
    config: ReferenceBenchmark, material: Material, tmp_path: Path, ray_here: None
) -> None:
    timed = timed_pass(config, material, 2, tmp_path / "pass")
    pairs = read_table(material.tokens_dir / "train.parquet", PairTokens)
    assert timed.positions == sum(computed_positions(pair, packed=True) for pair in pairs)
    assert timed.startup_s > 0 < timed.seconds
    assert len(list((tmp_path / "pass.arrived").iterdir())) == 2
    assert len(list((tmp_path / "pass").glob("train-*.safetensors"))) == 3
    record = {
        "model": "tiny",
        "pairs": 5,
        "pass": pass_figures({1: [9.0], 2: [timed.tokens_per_s]}, {1: [1.0], 2: [timed.startup_s]}),
        "prompts": prompt_figures(9, {"once": [1.0], "separate": [1.5]}),
        "tiers": [],
        "training": step_figures({name: [1.0] for name in STEPS}, BASELINE, LIVE),
    }
    assert [table.row_count for table in tables(record)] == [4, 0, len(STEPS)]


@pytest.fixture
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


# -- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--step_pairs", "100"], "step_pairs"), (["--actors", "1"], "actors"), (["--models", "1m", "1m"], "models")],
)
def test_a_wrong_option_is_refused(options: list[str], said: str) -> None:
    result = subprocess.run(
        [sys.executable, str(JOB), "reference", *options], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        data_config(ReferenceBenchmark(pairs=str(tmp_path / "nowhere.jsonl")))
