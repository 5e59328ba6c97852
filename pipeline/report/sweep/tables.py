"""Rows of the tables of a sweep's page: wording, formats and order, no HTML. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.language import Translate, english, sense
from pipeline.report.sweep.decision import reference_value, split_name, tested
from pipeline.report.sweep.front import ranked
from pipeline.report.sweep.words import (
    DASH,
    Row,
    counted,
    figures_of,
    options_text,
    others,
    points,
    sentence,
    trials_text,
)
from pipeline.report.view import duration, estimate, number, stage_name
from pipeline.units import bytes_text

Cell = tuple[str, str]
NONE: Cell = (DASH, "")
MAX_BARS = 40
_STAGES = ("align", "sample_policy", "evaluate")
_OTHER = "other"
"""What a trial took beside its stages: starting and waiting."""
_CLASSES = {**{name: f"s{place}" for place, name in enumerate(_STAGES)}, _OTHER: "s5"}


@dataclass(frozen=True)
class Compared:
    """Chosen and runner-up beside the reference: column groups with their splits, and the rows."""

    groups: list[tuple[str, list[str]]]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class SettingRow:
    """One line of the table of all settings."""

    place: int
    name: str
    chosen: bool
    marks: str
    cells: list[Cell]
    broken: str


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its parts as (class of the style sheet, stage with its time, per cent of the longest bar)."""

    name: str
    note: str
    total: str
    parts: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Bars:
    """What trials took, the legend of the parts, and what a bar stands for."""

    what: str
    keys: list[tuple[str, str]]
    bars: list[Bar]


def compared(sweep: Row, tr: Translate) -> Compared | None:
    """Chosen and runner-up, on the split of the choice and on the test split; None when nothing is chosen."""
    if sweep["chosen"] is None:
        return None
    split, test_split = split_name(sweep, tr), tr(sense("split", "test"))
    groups: list[tuple[str, list[str]]] = []
    columns: list[Mapping[str, Any]] = []
    picked = [(role, index) for role, index in (("chosen", sweep["chosen"]), ("runner-up", sweep["runner_up"]))]
    tests = [tested(sweep, role) for role, _ in picked]
    first = next((one for one in tests if one is not None), None)
    by_test = {} if first is None else _reference_on_test(first["figures"])
    groups.append((tr("Reference"), [split, test_split] if by_test else [split]))
    columns += [sweep["reference"], by_test] if by_test else [sweep["reference"]]
    for (role, index), test in zip(picked, tests, strict=True):
        if index is None:
            continue
        groups.append((sentence(role_name(role, tr), tr), [split] if test is None else [split, test_split]))
        columns += [sweep["settings"][index]["figures"], *([] if test is None else [test["figures"]])]
    rows = [
        (
            one.name,
            [points(column[one.key], one.form, tr) if column.get(one.key) else NONE for column in columns],
        )
        for one in figures_of(sweep, tr)
    ]
    return Compared(groups, rows)


def role_name(role: str, tr: Translate) -> str:
    """ "chosen" or "runner-up" in the page's language."""
    return tr(sense("setting", role))


def setting_rows(sweep: Row, tr: Translate) -> tuple[list[str], list[SettingRow]]:
    """Names of the columns of figures, and the settings by average gain."""
    costed = any(one.get("expected_cost") is not None for one in sweep["settings"])
    columns = [tr("Average, gain"), tr("Worst outputs, gain"), tr("Incidents"), tr("Drift, nats"), tr("Accuracy")]
    columns += [tr("Cost of 1,000")] if costed else []
    rows = []
    for place, index in enumerate(ranked(sweep["settings"]), start=1):
        setting = sweep["settings"][index]
        figures = setting["figures"]
        forms = (
            ("mean_gain", "+.3f"),
            ("tail_gain", "+.3f"),
            ("incidents", ".1%"),
            ("drift", ".2f"),
            ("reward_accuracy", ".1%"),
        )
        cells = [points(figures.get(name), form, tr) for name, form in forms]
        cells += [(number(setting.get("expected_cost"), ",.0f"), "")] if costed else []
        name, chosen = str(setting["name"]), index == sweep["chosen"]
        broken = tr("; ").join(setting["limits_broken"])
        rows.append(SettingRow(place, name, chosen, _marks(sweep, index, tr), cells, broken))
    return columns, rows


def cost_bars(sweep: Row, tr: Translate = english) -> Bars:
    """What each trial took by stage; the means of settings when there are many trials, the longest ones."""
    trials = [trial for trial in sweep["trials"] if trial["seconds"] is not None or trial["stages"]]
    if len(trials) <= MAX_BARS:
        rows = [(*_trial_name(sweep, trial, tr), _parts(trial)) for trial in trials]
        what = tr("Each bar is one trial")
    else:
        rows = _means_by_setting(sweep, trials, tr)
        what = tr("Each bar is the mean of a setting's trials")
    rows.sort(key=lambda row: -math.fsum(row[2].values()))
    if len(rows) > MAX_BARS:
        what += tr("; the {count} longest, then the mean of the rest").format(count=MAX_BARS)
        rest = rows[MAX_BARS:]
        others_name = tr("mean of {count} others").format(count=len(rest))
        rows = [*rows[:MAX_BARS], (others_name, "", _mean([row[2] for row in rest]))]
    names = _stage_names([row[2] for row in rows])
    longest = max((math.fsum(row[2].values()) for row in rows), default=0.0) or 1.0
    classes = {name: _CLASSES.get(name, "s4") for name in names}
    bars = [
        Bar(
            name,
            note,
            duration(math.fsum(parts.values()), tr),
            [
                (classes[stage], _timed(stage, parts[stage], tr), f"{100 * parts[stage] / longest:.2f}")
                for stage in names
                if parts.get(stage)
            ],
        )
        for name, note, parts in rows
    ]
    return Bars(what, [(classes[name], stage_name(name, tr)) for name in names], bars)


def _timed(stage: str, seconds: float, tr: Translate) -> str:
    return tr("{stage} {time}").format(stage=stage_name(stage, tr), time=duration(seconds, tr))


def shared_text(sweep: Row, tr: Translate) -> list[str]:
    """What all trials shared, and what the sweep took as a whole, in sentences."""
    shared = sweep["shared"]
    stages = {name: seconds for name, seconds in shared["stages"].items() if seconds is not None}
    found = []
    if stages:
        parts = tr(", ").join(_timed(name, seconds, tr) for name, seconds in stages.items())
        once = math.fsum(stages.values())
        done = tr("Done once for all trials: {stages}; together {time}.")
        found.append(done.format(stages=parts, time=duration(once, tr)))
        finished = sum(trial["state"] == "finished" for trial in sweep["trials"])
        if finished > 1:
            alone = tr("Done by each of the {count} finished trials for itself, it would have taken {time} more.")
            found.append(alone.format(count=finished, time=duration(once * (finished - 1), tr)))
    passes = shared.get("reference_passes")
    if passes is not None:
        once_only = tr("The reference was run over the pairs once.")
        found.append(counted(passes, once_only, tr("The reference was run over the pairs {count} times.")))
    if shared.get("seconds_total") is not None:
        at_once, time = shared.get("trials_at_once"), duration(shared["seconds_total"], tr)
        took = tr("The last call of the command took {time} by the clock.")
        beside = tr("The last call of the command took {time} by the clock, with up to {trials} at a time.")
        found.append(beside.format(time=time, trials=trials_text(at_once, tr)) if at_once else took.format(time=time))
    return found


def risk_rows(sweep: Row, tr: Translate) -> list[tuple[str, list[Cell]]]:
    """What being averse to risk costs, and what it avoids, a line for each method."""
    return [
        (
            str(row["method"]),
            [
                (f"{row['settings']:,}", ""),
                (number(row.get("seconds_per_step"), ".3g"), ""),
                (number(row.get("ratio_to_dpo"), ".2f"), ""),
                (
                    DASH if row.get("reference_bytes") is None else bytes_text(row["reference_bytes"]),
                    tr("{tier} tier").format(tier=row["reference_tier"]) if row.get("reference_tier") else "",
                ),
                estimate(row.get("loss_avoided_per_1000"), "+,.0f", tr),
            ],
        )
        for row in sweep["risk_cost"]
    ]


def pilot_rows(pilot: Row, tr: Translate) -> list[Cell]:
    """How the pilot's ranks agree with those on everything."""
    names = {"mean": tr("average score"), "tail": tr("worst outputs"), "drift": tr("drift")}
    return [
        (names.get(name, name), number(value, ".2f") if value is not None else tr("too few settings"))
        for name, value in (pilot.get("rank_agreement") or {}).items()
    ]


def trial_rows(sweep: Row, tr: Translate) -> list[dict[str, str]]:
    """Every trial, whatever became of it; those that did not finish first."""
    trials = sorted(sweep["trials"], key=lambda trial: (trial["state"] == "finished", trial["number"]))
    return [
        {
            "number": str(trial["number"]),
            "options": options_text(trial["options"]),
            "seed": DASH if trial.get("seed") is None else str(trial["seed"]),
            "state": tr(sense("state", str(trial["state"]))),
            "reason": str(trial.get("reason") or ""),
            "time": duration(trial.get("seconds"), tr),
            "report": str(trial.get("report") or ""),
        }
        for trial in trials
    ]


def setting_of(sweep: Row, options: Row) -> Row | None:
    """The setting that a trial belongs to: all of its options agree, and it names the most."""
    fitting = [one for one in sweep["settings"] if all(options.get(k) == v for k, v in one["options"].items())]
    return max(fitting, key=lambda one: len(one["options"]), default=None)


def _reference_on_test(figures: Row) -> dict[str, Any]:
    """The reference's figures on the test split, which follow from the policy's and their gains; without intervals."""
    values = {key: reference_value(figures, key) for key in ("mean", "tail", "incidents")}
    return {key: {"value": one, "low": None, "high": None} for key, one in values.items() if one is not None}


def _marks(sweep: Row, index: int, tr: Translate) -> str:
    setting = sweep["settings"][index]
    marks = [
        *([role_name("chosen", tr)] if index == sweep["chosen"] else []),
        *([role_name("runner-up", tr)] if index == sweep["runner_up"] else []),
        *([tr("front")] if setting["front"] else []),
        *(one for one in others(setting, sweep["dimensions"]) if one not in setting["name"]),
    ]
    if list(setting["seeds"]) != list(sweep["seeds"]):
        seeds = ", ".join(str(seed) for seed in setting["seeds"])
        only = tr("only seeds {seeds}") if len(setting["seeds"]) > 1 else tr("only seed {seeds}")
        marks.append(only.format(seeds=seeds))
    return " · ".join(marks)


def _trial_name(sweep: Row, trial: Row, tr: Translate) -> tuple[str, str]:
    setting = setting_of(sweep, trial["options"])
    name = options_text(trial["options"]) if setting is None else str(setting["name"])
    seed = [tr("seed {seed}").format(seed=trial["seed"])] if trial.get("seed") is not None else []
    state = [] if trial["state"] == "finished" else [tr(sense("state", str(trial["state"])))]
    return name, tr(", ").join([*seed, *state])


def _parts(trial: Row) -> dict[str, float]:
    """Seconds by stage, and what is left of the whole."""
    parts = {name: float(seconds) for name, seconds in (trial["stages"] or {}).items() if seconds}
    left = float(trial["seconds"] or 0.0) - math.fsum(parts.values())
    return parts | ({_OTHER: left} if left > 0.05 else {})


def _means_by_setting(sweep: Row, trials: Sequence[Row], tr: Translate) -> list[tuple[str, str, dict[str, float]]]:
    groups: dict[str, list[Row]] = {}
    for trial in trials:
        groups.setdefault(_trial_name(sweep, trial, tr)[0], []).append(trial)
    return [
        (name, trials_text(len(group), tr), _mean([_parts(trial) for trial in group])) for name, group in groups.items()
    ]


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: math.fsum(row.get(name, 0.0) for row in rows) / len(rows) for name in _stage_names(rows)}


def _stage_names(rows: Sequence[dict[str, float]]) -> list[str]:
    names = {name for row in rows for name in row}
    first = [name for name in _STAGES if name in names]
    return [*first, *sorted(names - {*_STAGES, _OTHER}), *([_OTHER] if _OTHER in names else [])]
