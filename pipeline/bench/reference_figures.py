"""The figures of the reference benchmark: ratios within rounds with their spread, sizes, and the tables people read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipeline.bench.reference_config import TIERS

TIER_TEXTS = {
    "hidden": "hidden states, float32",
    "hidden_8bit": "hidden states, 8 bits",
    "topk_64": "64 likeliest tokens",
    "topk_mass_99": "mass 0.99, at most 256 tokens",
    "scalar": "scalars",
}
STEP_TEXTS = {
    "scalar": "dpo, scalars",
    "hidden": "ra_dpo2, hidden states",
    "hidden_8bit": "ra_dpo2, hidden states in 8 bits",
    "topk_64": "ra_dpo2, 64 likeliest tokens",
    "live": "ra_dpo2, live reference",
}


def ratio(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of ``own / base`` round by round."""
    ratios = [one / other for one, other in zip(own, base, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def pass_figures(rates: Mapping[int, Sequence[float]], startups: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Of passes by so many actors.

    Args:
        rates: number of actors -> tokens a second in every round.
        startups: number of actors -> seconds until all were warm.

    Returns:
        ``passes``, a record for each number; ``scaling``: the ratio of the medians of most to one actor, with the
        lowest and highest ratio of two passes of one round; None when only one actor has room.
    """
    records = [
        {
            "actors": actors,
            "tokens_per_s": statistics.median(own),
            "tokens_per_s_lowest": min(own),
            "tokens_per_s_highest": max(own),
            "rounds": len(own),
            "startup_s": statistics.median(startups[actors]),
        }
        for actors, own in sorted(rates.items())
    ]
    most, least = max(rates), min(rates)
    scaling = None
    if most > least:
        medians = statistics.median(rates[most]) / statistics.median(rates[least])
        scaling = ratio(rates[most], rates[least]) | {"median": medians}
    return {"passes": records, "scaling": scaling}


def prompt_figures(tokens: int, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Of prompts computed once and for every response; None when the model does not bear the former.

    Args:
        tokens: of the pairs, a prompt counted once however it is computed.
        seconds: of the two ways, ``once`` and ``separate``, in every round.
    """
    if not seconds["once"]:
        return None
    rates = {f"tokens_per_s_{name}": tokens / statistics.median(times) for name, times in seconds.items()}
    return rates | {"speedup": ratio(seconds["separate"], seconds["once"]), "rounds": len(seconds["once"])}


def tier_figures(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Size and measured error of a finished cache."""
    totals = manifest["statistics"]
    size = sum(shard["bytes"] for shard in manifest["shards"])
    measured = totals["measured_positions"]
    return {
        "tier": name,
        "options": TIERS[name],
        "positions": totals["response_tokens"],
        "bytes": size,
        "bytes_per_position": size / totals["response_tokens"],
        "head_bytes": manifest["head"]["bytes"] if manifest["head"] else 0,
        "error": None
        if not measured
        else {
            "positions": measured,
            "kl_mean": totals["kl_sum"] / measured,
            "kl_max": totals["kl_max"],
            "logp_error_max": totals["logp_error_max"],
        },
    }


def step_figures(seconds: Mapping[str, Sequence[float]], baseline: str, live: str) -> dict[str, Any]:
    """Of training steps: a record for each kind, its ratio to the baseline in the same round, and ``recovered``:
    the share of what a live reference costs more than the baseline that a cache of hidden states saves (None where
    it costs nothing more)."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    records = [
        {
            "step": name,
            "seconds": medians[name],
            "ratio": ratio(times, seconds[baseline]),
            "rounds": len(times),
        }
        for name, times in seconds.items()
    ]
    cost = medians[live] - medians[baseline]
    return {"steps": records, "recovered": (medians[live] - medians["hidden"]) / cost if cost > 0 else None}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The record of one model as tables for the terminal."""
    return [_pass_table(found), _tier_table(found), _step_table(found)]


def _pass_table(found: Mapping[str, Any]) -> Table:
    drawn = _table(
        f"{found['model']}: the pass, {found['pairs']} pairs", "pass", "tokens a second", "ratio", "lowest to highest"
    )
    figures = found["pass"]
    for record in figures["passes"]:
        is_most = record["actors"] > 1
        text = f"{record['actors']} actor(s), start-up {record['startup_s']:.1f} s not counted"
        drawn.add_row(
            text, f"{record['tokens_per_s']:,.0f}", *(_cells(figures["scaling"]) if is_most else ("1.00", ""))
        )
    if found["prompts"] is not None:
        drawn.add_section()
        prompts = found["prompts"]
        drawn.add_row("a prompt for every response", f"{prompts['tokens_per_s_separate']:,.0f}", "1.00", "")
        drawn.add_row("prompts once", f"{prompts['tokens_per_s_once']:,.0f}", *_cells(prompts["speedup"]))
    return drawn


def _tier_table(found: Mapping[str, Any]) -> Table:
    title = f"{found['model']}: the cache, and the error of 8 bits (nats)"
    drawn = _table(title, "tier", "bytes a position", "mean KL", "largest KL", "largest change of logp")
    for record in found["tiers"]:
        error = record["error"]
        cells = [f"{error[name]:.2g}" for name in ("kl_mean", "kl_max", "logp_error_max")] if error else ["", "", ""]
        drawn.add_row(TIER_TEXTS[record["tier"]], f"{record['bytes_per_position']:,.1f}", *cells)
    return drawn


def _step_table(found: Mapping[str, Any]) -> Table:
    figures = found["training"]
    title = f"{found['model']}: a training step"
    if figures["recovered"] is not None:
        title += f"; hidden states save {figures['recovered']:.0%} of what a live reference adds"
    drawn = _table(title, "step", "seconds", "x dpo", "lowest to highest")
    for record in figures["steps"]:
        drawn.add_row(STEP_TEXTS[record["step"]], f"{record['seconds']:.3f}", *_cells(record["ratio"]))
    return drawn


def _table(title: str, first: str, *others: str) -> Table:
    drawn = Table(title=title, title_justify="left")
    drawn.add_column(first, no_wrap=True)
    for name in others:
        drawn.add_column(name, justify="right")
    return drawn


def _cells(spread: Mapping[str, float]) -> tuple[str, str]:
    return f"{spread['median']:.2f}", f"{spread['lowest']:.2f} to {spread['highest']:.2f}"
