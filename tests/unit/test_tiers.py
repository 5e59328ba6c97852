from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.catalogue import MEASURES
from pipeline.config import ReferenceConfig, RunConfig
from pipeline.models.load import output_head
from pipeline.records import PairTokens
from pipeline.reference.compute import reference_rows
from pipeline.reference.layout import ShardHeader, write_head, write_shard
from pipeline.tiers import (
    KINDS,
    CacheShape,
    Kind,
    cache_bytes,
    choosing,
    chosen_kind,
    id_bytes,
    is_upper_bound,
    kind_name,
    serves,
)

OPTIONS: dict[Kind, ReferenceConfig] = {
    "hidden": ReferenceConfig(),
    "hidden 8bit": ReferenceConfig(hidden_rows="8bit"),
    "topk": ReferenceConfig(tier="topk", top_k=5),
    "scalar": ReferenceConfig(tier="scalar"),
}
SHAPE = CacheShape(
    pairs=10,
    files=1,
    id_bytes=100,
    positions=1_000,
    hidden_size=100,
    vocab_size=300,
    head_bias=False,
    number_bytes=2,
)


def run_with(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "model"}} | sections)


def test_the_tiers_by_hand() -> None:
    """What a tier adds to the scalars at 1,000 positions of width 100 in two bytes, vocabulary 300.

    Exact: 1,000 x 100 x 2, and the head 300 x 100 x 2. 8-bit: 100 numbers and 2 scales of 4 bytes, and the head.
    Top-k: 12 bytes a position and 8 for each of 5 tokens, and the 21 offsets of 8 bytes. Ten pairs have 20 logps of
    4 bytes, 10 checksums and 21 offsets of 8, ten digests of 70, and the file's 2,000.
    """
    scalar = cache_bytes("scalar", OPTIONS["scalar"], SHAPE)
    assert scalar == 20 * 4 + 10 * 8 + 21 * 8 + 10 * 70 + 100 + 2_000
    extra = {kind: cache_bytes(kind, OPTIONS["topk"], SHAPE) - scalar for kind in KINDS}
    assert extra == {"hidden": 260_000, "hidden 8bit": 108_000 + 60_000, "topk": 52_000 + 168, "scalar": 0}
    biased = dataclasses.replace(SHAPE, head_bias=True)
    assert cache_bytes("hidden", OPTIONS["hidden"], biased) - cache_bytes("hidden", OPTIONS["hidden"], SHAPE) == 600
    # No more tokens than there are.
    many = ReferenceConfig(tier="topk", top_k=10_000)
    assert cache_bytes("topk", many, SHAPE) - scalar == 1_000 * (12 + 8 * 300) + 168


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", ["{}", 'a "quoted"\\ id {}', "åß🎈 {}", "a" * 64 + "{}"])
def test_the_files_have_the_predicted_size(kind: Kind, ids: str, tmp_path: Path, make_model: Any) -> None:
    """To within the two kilobytes a file that are set aside for its header."""
    import torch

    rng = random.Random(0)
    lengths = [(rng.randint(1, 6), rng.randint(2, 20), rng.randint(2, 20)) for _ in range(70)]
    pairs = [
        PairTokens(ids.format(number), "", *([rng.randrange(40) for _ in range(count)] for count in three), "f" * 64)
        for number, three in enumerate(lengths)
    ]
    model, options, total = make_model(), OPTIONS[kind], 0
    for number, start in enumerate(range(0, len(pairs), 32)):
        some = pairs[start : start + 32]
        rows, _ = reference_rows(model, some, options, pad_id=0, device=torch.device("cpu"), packed=True)
        path = tmp_path / f"{number}.safetensors"
        write_shard(path, ShardHeader("k" * 32, 40), rows, {})
        total += path.stat().st_size
    if options.tier == "hidden":
        write_head(tmp_path / "head.safetensors", output_head(model))
        total += (tmp_path / "head.safetensors").stat().st_size
    shape = CacheShape(
        pairs=len(pairs),
        files=3,
        id_bytes=id_bytes(pair.row_id for pair in pairs),
        positions=sum(chosen + rejected for _, chosen, rejected in lengths),
        hidden_size=16,
        vocab_size=40,
        head_bias=False,
        number_bytes=4,
    )
    predicted = cache_bytes(kind, options, shape)
    assert 0 <= predicted - total <= 3 * 2_000
    assert cache_bytes(kind, options, shape, least=True) == predicted


positive = st.integers(1, 10**6)


@given(positive, positive, positive, positive, st.integers(1, 512), st.sampled_from([2, 4]))
def test_every_tier_takes_more_than_the_scalars(
    pairs: int, extra: int, hidden_size: int, vocab_size: int, top_k: int, number_bytes: int
) -> None:
    shape = CacheShape(pairs, 1, 10 * pairs, 2 * pairs + extra, hidden_size, vocab_size, False, number_bytes)
    massed = ReferenceConfig(tier="topk", top_k=top_k, top_mass=0.5)
    sizes = {kind: cache_bytes(kind, massed, shape) for kind in KINDS}
    assert sizes["scalar"] < min(sizes["hidden"], sizes["hidden 8bit"], sizes["topk"])
    least = cache_bytes("topk", massed, shape, least=True)
    assert sizes["scalar"] < least <= sizes["topk"]
    assert (least == sizes["topk"]) == (min(top_k, vocab_size) == 1)
    if hidden_size >= 4:
        assert sizes["hidden 8bit"] <= sizes["hidden"]


@pytest.mark.parametrize("method", ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"])
@pytest.mark.parametrize("measure", [*MEASURES, "mine:distortion"])
def test_a_tier_serves_exactly_the_losses_that_a_run_accepts_with_it(method: str, measure: str) -> None:
    sections: dict[str, Any] = {"loss": {"method": method}, "risk": {"measure": measure}}
    run = run_with(**sections)
    accepted = []
    for kind, options in OPTIONS.items():
        try:
            run_with(**sections, reference=options.model_dump())
            accepted.append(kind)
        except ValidationError:
            pass
    assert accepted == [kind for kind in KINDS if serves(kind, run)]
    published = method.startswith("ra") and measure.startswith("vocab_quantile")
    expected = (
        {"hidden", "hidden 8bit"} | (set() if published else {"topk"}) | ({"scalar"} if method == "dpo" else set())
    )
    assert set(accepted) == expected


@pytest.mark.parametrize("before", [*OPTIONS.values(), ReferenceConfig(tier="topk", top_mass=0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_options_named_choose_the_tier(kind: Kind, before: ReferenceConfig) -> None:
    flags = choosing(kind, before).replace("--reference.", "").split()
    assert (flags == []) == (kind == chosen_kind(before))
    changed = {name: None if value == "None" else value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    after = ReferenceConfig.model_validate(before.model_dump() | changed)
    assert chosen_kind(after) == kind
    assert after.top_k == before.top_k


def test_the_names_say_what_bounds_a_tier() -> None:
    assert [kind_name(kind, ReferenceConfig()) for kind in KINDS] == [
        "hidden",
        "hidden, 8bit",
        "topk, 64 tokens a position",
        "scalar",
    ]
    massed = ReferenceConfig(tier="topk", top_mass=0.9, top_k=1_000)
    assert kind_name("topk", massed) == "topk, at most 1,000 tokens a position"
    assert [kind for kind in KINDS if is_upper_bound(kind, massed)] == ["topk"]
    assert not is_upper_bound("topk", ReferenceConfig(tier="topk"))
