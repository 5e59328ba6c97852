"""sweep.html: one self-contained page from sweep.json, the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.page import fill
from pipeline.report.sweep import tables
from pipeline.report.sweep.decision import decide, unfinished
from pipeline.report.sweep.front import front_charts
from pipeline.report.sweep.levels import sensitivity
from pipeline.report.sweep.words import counted, short
from pipeline.report.view import duration

TEMPLATE = "sweep/sweep.html.j2"
MAX_ROWS = 40
"""So many settings stand in the open table; those behind them are folded."""


def render_sweep(sweep: Mapping[str, Any]) -> str:
    """The page as one HTML document without scripts or anything to fetch. ``sweep`` is the content of sweep.json."""
    columns, rows = tables.setting_rows(sweep)
    charts, keys = front_charts(sweep)
    pilot = sweep["pilot"]
    return fill(
        TEMPLATE,
        sweep=sweep,
        decision=decide(sweep),
        subtitle=_subtitle(sweep),
        compared=tables.compared(sweep),
        reports=[(one["role"], one["reports"]) for one in sweep["test"] if one["reports"]],
        front_charts=charts,
        front_keys=keys,
        sensitivity=sensitivity(sweep),
        columns=columns,
        row_parts=[part for part in (rows[:MAX_ROWS], rows[MAX_ROWS:]) if part],
        bars=tables.cost_bars(sweep),
        shared=tables.shared_text(sweep),
        risk_rows=tables.risk_rows(sweep),
        pilot=pilot,
        pilot_text=[] if pilot is None else _pilot_text(pilot),
        pilot_rows=[] if pilot is None else tables.pilot_rows(pilot),
        trials=tables.trial_rows(sweep),
        trials_text=unfinished(sweep),
        several_seeds=len(sweep["seeds"]) > 1,
        tail=f"{100 * sweep['tail_fraction']:.3g}%",
    )


def _subtitle(sweep: Mapping[str, Any]) -> str:
    searched = {"grid": "Every setting of a grid", "random": "Random settings", "optuna": "Settings searched by Optuna"}
    names = ", ".join(short(name, sweep["dimensions"]) for name in sweep["dimensions"])
    words = searched.get(sweep["search"], f"Settings searched by {sweep['search']}")
    words += f" over {names}" if names else ""
    seeds = ", ".join(str(seed) for seed in sweep["seeds"])
    words += f"; seed{'s' if len(sweep['seeds']) > 1 else ''} {seeds}. {unfinished(sweep)}"
    prompts = counted(sweep["num_prompts"], f"{sweep['split']} prompt")
    return f"{words}. Compared by {prompts} with {counted(sweep['samples_per_prompt'], 'sample')} each."


def _pilot_text(pilot: Mapping[str, Any]) -> list[str]:
    kept, dropped = len(pilot["kept"]), len(pilot["dropped"])
    found = [
        f"Before the sweep, {counted(pilot['settings'], 'setting')} ran on {100 * pilot['fraction']:.3g}% of the "
        f"training pairs ({pilot['pairs']:,}): {kept:,} were kept and {dropped:,} dropped."
    ]
    alone, everything = pilot.get("chosen"), pilot.get("chosen_on_everything")
    if pilot.get("same_choice") is not None:
        other = "the same" if pilot["same_choice"] else f"on everything it was {everything or 'none'}"
        found.append(f"By itself the pilot would have chosen {alone or 'none'}; {other}.")
    elif alone is not None:
        found.append(f"By itself the pilot would have chosen {alone}.")
    if pilot.get("seconds_pilot") is not None:
        found.append(f"It took {duration(pilot['seconds_pilot'])}{_saved(pilot.get('seconds_saved'))}.")
    return found


def _saved(seconds: float | None) -> str:
    if seconds is None:
        return ""
    words = "saved an estimated" if seconds >= 0 else "cost an estimated"
    more = "" if seconds >= 0 else " more than it saved"
    return (
        f" and {words} {duration(abs(seconds))}{more} (the dropped settings at the mean cost of those kept, less the "
        "pilot's own)"
    )
