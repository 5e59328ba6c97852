"""sweep.html: one self-contained page from sweep.json, the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.language import Translate, sense, translator
from pipeline.report.page import fill
from pipeline.report.sweep import tables
from pipeline.report.sweep.decision import decide, split_name, unfinished
from pipeline.report.sweep.front import front_charts
from pipeline.report.sweep.levels import sensitivity
from pipeline.report.sweep.words import counted, settings_text, short
from pipeline.report.view import duration

TEMPLATE = "sweep/sweep.html.j2"
MAX_ROWS = 40
"""So many settings stand in the open table; those behind them are folded."""


def render_sweep(sweep: Mapping[str, Any]) -> str:
    """The page as one HTML document without scripts or anything to fetch, in the language of its sweep.

    ``sweep`` is the content of sweep.json; its verdicts and broken limits are in that language already.
    """
    language = sweep.get("language", "en")
    tr = translator(language)
    columns, rows = tables.setting_rows(sweep, tr)
    charts, keys = front_charts(sweep, tr)
    pilot = sweep["pilot"]
    return fill(
        TEMPLATE,
        language,
        sweep=sweep,
        split=split_name(sweep, tr),
        decision=decide(sweep, tr),
        subtitle=_subtitle(sweep, tr),
        compared=tables.compared(sweep, tr),
        reports=[(tables.role_name(one["role"], tr), one["reports"]) for one in sweep["test"] if one["reports"]],
        front_charts=charts,
        front_keys=keys,
        sensitivity=sensitivity(sweep, tr),
        columns=columns,
        row_parts=[part for part in (rows[:MAX_ROWS], rows[MAX_ROWS:]) if part],
        bars=tables.cost_bars(sweep, tr),
        shared=tables.shared_text(sweep, tr),
        risk_rows=tables.risk_rows(sweep, tr),
        pilot=pilot,
        pilot_text=[] if pilot is None else _pilot_text(pilot, tr),
        pilot_rows=[] if pilot is None else tables.pilot_rows(pilot, tr),
        trials=tables.trial_rows(sweep, tr),
        trials_text=unfinished(sweep, tr),
        several_seeds=len(sweep["seeds"]) > 1,
        tail=f"{100 * sweep['tail_fraction']:.3g}%",
    )


def _subtitle(sweep: Mapping[str, Any], tr: Translate) -> str:
    searched = {
        "grid": tr("Every setting of a grid"),
        "random": tr("Random settings"),
        "optuna": tr("Settings searched by Optuna"),
    }
    names = tr(", ").join(short(name, sweep["dimensions"]) for name in sweep["dimensions"])
    other = tr("Settings searched by {search}").format(search=sweep["search"])
    words = searched.get(sweep["search"], other)
    words = tr("{settings} over {options}").format(settings=words, options=names) if names else words
    one, many = tr("{settings}; seed {seeds}. {trials}."), tr("{settings}; seeds {seeds}. {trials}.")
    seeds = tr(", ").join(str(seed) for seed in sweep["seeds"])
    asked = (many if len(sweep["seeds"]) > 1 else one).format(settings=words, seeds=seeds, trials=unfinished(sweep, tr))
    prompts = counted(
        sweep["num_prompts"], tr("{count} {split} prompt"), tr("{count} {split} prompts"), split=split_name(sweep, tr)
    )
    samples = counted(sweep["samples_per_prompt"], tr("{count} sample"), tr("{count} samples"))
    return asked + tr(" Compared by {prompts} with {samples} each.").format(prompts=prompts, samples=samples)


def _pilot_text(pilot: Mapping[str, Any], tr: Translate) -> list[str]:
    before = tr(
        "Before the sweep, {settings} ran on {share} of the training pairs ({pairs}): {kept} were kept and {dropped} "
        "dropped."
    )
    found = [
        before.format(
            settings=settings_text(pilot["settings"], tr),
            share=f"{100 * pilot['fraction']:.3g}%",
            pairs=f"{pilot['pairs']:,}",
            kept=f"{len(pilot['kept']):,}",
            dropped=f"{len(pilot['dropped']):,}",
        )
    ]
    none = tr(sense("setting", "none"))
    alone, everything = pilot.get("chosen") or none, pilot.get("chosen_on_everything") or none
    if pilot.get("same_choice"):
        found.append(tr("By itself the pilot would have chosen {setting}; the same.").format(setting=alone))
    elif pilot.get("same_choice") is not None:
        other = tr("By itself the pilot would have chosen {setting}; on everything it was {other}.")
        found.append(other.format(setting=alone, other=everything))
    elif pilot.get("chosen") is not None:
        found.append(tr("By itself the pilot would have chosen {setting}.").format(setting=alone))
    if pilot.get("seconds_pilot") is not None:
        found.append(_pilot_time(pilot, tr))
    return found


def _pilot_time(pilot: Mapping[str, Any], tr: Translate) -> str:
    time, saved = duration(pilot["seconds_pilot"], tr), pilot.get("seconds_saved")
    if saved is None:
        return tr("It took {time}.").format(time=time)
    gained = tr(
        "It took {time} and saved an estimated {saved} (the dropped settings at the mean cost of those kept, less the "
        "pilot's own)."
    )
    lost = tr(
        "It took {time} and cost an estimated {saved} more than it saved (the dropped settings at the mean cost of "
        "those kept, less the pilot's own)."
    )
    return (gained if saved >= 0 else lost).format(time=time, saved=duration(abs(saved), tr))
