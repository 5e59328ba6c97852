from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import parse_job
from pipeline.config import RunConfig
from pipeline.plan import Cost, ModelShape, TokenCounts, cost
from pipeline.room import Room, refusal
from pipeline.tiers import chosen_kind
from pipeline.units import bytes_text
from tests.counts import counts_by_hand

MODEL = ModelShape(parameters=10_000, hidden_size=512, vocab_size=50, exact=True, basis="by hand")
COUNTS = counts_by_hand(response_tokens=(3_000, 400, 700))
CHECKPOINTS = 3 * 12 * 10_000
MODELS = 40_000 + CHECKPOINTS
"""What goes to the storage: one model of float32, and three checkpoints while it is trained."""
TO_DO = ("tokens", "reference", "align", "report")


def run_with(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "model"}} | sections)


def costs_of(run: RunConfig, counts: TokenCounts | None = COUNTS, to_do: tuple[str, ...] = TO_DO) -> Cost:
    return cost(run, counts, MODEL, to_do)


def one_disk(free: int | None) -> Room:
    return Room("/runs", free, "/runs/references", free, shared=True)


def two_disks(storage: int | None, references: int | None) -> Room:
    return Room("/runs", storage, "/caches", references, shared=False)


def refused(run: RunConfig, room: Room, costs: Cost | None = None) -> str:
    message = refusal(costs or costs_of(run), run, room)
    assert message is not None
    return message


def tiers_bytes(run: RunConfig) -> dict[str, int]:
    work = costs_of(run).work
    assert work is not None
    return {str(kind): size for kind, size in work.reference_bytes.items()}


def test_only_what_clearly_does_not_fit_is_refused() -> None:
    run = run_with()
    exact = costs_of(run)
    needed = exact.to_write_bytes + CHECKPOINTS
    assert refusal(exact, run, one_disk(needed)) is None
    message = refused(run, one_disk(needed - 1))
    assert message.startswith(f"storage /runs has {bytes_text(needed - 1)} free, but the run would write 7.5 MB (")
    assert "(reference cache 7.1 MB, models 40.0 kB, checkpoints while training 360.0 kB)" in message
    estimate = costs_of(run, dataclasses.replace(COUNTS, exact=False))
    assert refusal(estimate, run, one_disk(needed - 1)) is None
    assert "would write about 7.5 MB" in refused(run, one_disk(needed // 2), estimate)


def test_the_tiers_that_fit_and_serve_the_loss_are_named_with_their_options() -> None:
    """Scalars would fit everywhere here, but only dpo can be trained on them."""
    run = run_with()
    sizes = tiers_bytes(run)
    assert sizes["scalar"] < sizes["topk"] < sizes["hidden 8bit"] < sizes["hidden"]
    models = MODELS
    eight = f"`--reference.hidden_rows 8bit` (needs about {bytes_text(sizes['hidden 8bit'])})"
    topk = f"`--reference.tier topk` (needs about {bytes_text(sizes['topk'])})"
    scalar = f"`--reference.tier scalar` (needs about {bytes_text(sizes['scalar'])})"
    for free, named in (
        (models + sizes["hidden 8bit"], [eight, topk]),
        (models + sizes["hidden 8bit"] - 1, [topk]),
        (models + sizes["topk"], [topk]),
    ):
        assert refused(run, one_disk(free)).endswith(f"or choose a tier that fits: {' or '.join(named)}")
    none = refused(run, one_disk(models + sizes["topk"] - 1))
    assert none.endswith("; no other tier that serves ra_dpo2 with cvar fits there")
    assert "--data.max_train_pairs" in none
    dpo = run_with(loss={"method": "dpo"})
    assert refused(dpo, one_disk(models + sizes["topk"])).endswith(f"{topk} or {scalar}")
    published = run_with(risk={"measure": "vocab_quantile"})
    assert refused(published, one_disk(models + sizes["topk"])).endswith(
        "serves ra_dpo2 with vocab_quantile fits there"
    )
    # The exact tier is named to a run in a larger one.
    large = run_with(reference={"tier": "topk", "top_k": 50, "top_mass": None})
    small = dataclasses.replace(MODEL, hidden_size=8)
    costs = cost(large, COUNTS, small, TO_DO)
    message = refused(large, one_disk(costs.to_write_bytes + CHECKPOINTS - 1), costs)
    assert "`--reference.tier hidden` (" in message
    assert "`--reference.tier hidden --reference.hidden_rows 8bit` (" in message


@pytest.mark.parametrize("reference", [{}, {"tier": "topk", "top_mass": 0.5}, {"hidden_rows": "8bit"}])
def test_the_options_named_are_options_of_the_job(reference: dict[str, Any], tmp_path: Path) -> None:
    run = run_with(reference=reference, loss={"method": "dpo"})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    costs = dataclasses.replace(costs_of(run), reference_to_write_least_bytes=10**9)  # its own tier, however small
    offered = refused(run, one_disk(9 * 10**8), costs).partition(" fits: ")[2].split("`")[1::2]
    assert len(offered) == 3
    for flags in offered:
        changed = parse_job("align", "", ["--recipe", str(recipe), *flags.split()]).run
        assert chosen_kind(changed.reference) != chosen_kind(run.reference)
        assert changed.loss == run.loss


def test_where_the_models_alone_are_too_large_no_tier_helps() -> None:
    run = run_with(checkpoint={"keep": 1})
    fixed = 40_000 + 2 * 120_000
    for costs in (costs_of(run), costs_of(run, to_do=("align",)), costs_of(run, counts=None)):
        message = refused(run, one_disk(fixed - 1), costs)
        assert "tier" not in message
        assert "max_train_pairs" not in message
        assert message.endswith("free some space, or set --storage to another disk")
    assert refusal(costs_of(run, counts=None), run, one_disk(fixed)) is None


def test_a_mass_refuses_only_what_cannot_fit_at_all() -> None:
    run = run_with(reference={"tier": "topk", "top_mass": 0.9})
    costs = costs_of(run)
    least = MODELS + costs.reference_to_write_least_bytes
    assert least < costs.to_write_bytes + CHECKPOINTS
    assert refusal(costs, run, one_disk(least)) is None
    assert "would write at least " in refused(run, one_disk(least - 1))


def test_each_disk_is_judged_for_what_goes_there() -> None:
    run = run_with(reference={"root": "/caches"})
    cache = costs_of(run).reference_to_write_bytes
    assert refusal(costs_of(run), run, two_disks(MODELS, cache)) is None
    message = refused(run, two_disks(MODELS - 1, cache))
    assert message.startswith("storage /runs has 400.0 kB free, but the run would write 400.0 kB (models 40.0 kB, ")
    message = refused(run, two_disks(MODELS, cache - 1))
    assert message.startswith("reference.root /caches has 7.1 MB free")
    assert "(reference cache 7.1 MB)" in message
    assert "set --reference.root to another disk" in message
    assert "--storage" not in message
    # A tier needs no room for the models there.
    sizes = tiers_bytes(run)
    assert "`--reference.tier topk`" in refused(run, two_disks(MODELS, sizes["topk"]))
    # On one disk both are named, for either can be moved.
    shared = Room("/runs", cache, "/runs/caches", cache, shared=True)
    assert "set --storage or --reference.root to another disk" in refused(run, shared)


@pytest.mark.parametrize("storage", [MODELS, None])
def test_what_nobody_knows_refuses_nothing(storage: int | None) -> None:
    run = run_with(reference={"root": "s3://bucket/caches"})
    assert refusal(costs_of(run), run, Room("/runs", storage, "s3://bucket/caches", None, shared=False)) is None


def test_what_is_there_already_needs_no_room() -> None:
    run = run_with()
    whole = costs_of(run)
    half = cost(run, COUNTS, MODEL, TO_DO, reference_there_bytes=6_000_000)
    free = whole.to_write_bytes + CHECKPOINTS - 6_000_000
    assert refusal(whole, run, one_disk(free)) is not None
    assert refusal(half, run, one_disk(free)) is None
    committed = costs_of(run, to_do=("align", "report"))
    assert refusal(committed, run, one_disk(MODELS)) is None


def test_checkpoints_are_counted_while_a_training_is_to_do() -> None:
    run = run_with(checkpoint={"keep": 4})
    costs = costs_of(run, to_do=("align",))
    needed = 40_000 + 5 * 120_000
    assert refusal(costs, run, one_disk(needed)) is None
    message = refused(run, one_disk(needed - 1), costs)
    assert "would write 640.0 kB (models 40.0 kB, checkpoints while training 600.0 kB): " in message
    assert message.endswith("free some space, set --storage to another disk, or lower --checkpoint.keep")
    # Fewer would not do here.
    assert "--checkpoint.keep" not in refused(run, one_disk(40_000 + 2 * 120_000 - 1), costs)
    # A killed training goes on beside what it has left.
    there = cost(run, COUNTS, MODEL, ("align",), checkpoints_there_bytes=480_000)
    assert refusal(there, run, one_disk(40_000 + 120_000)) is None
    assert refusal(there, run, one_disk(40_000 + 120_000 - 1)) is not None
    assert refusal(costs_of(run, to_do=("evaluate", "report")), run, one_disk(0)) is None
