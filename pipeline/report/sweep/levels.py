"""What the level of a measure does to average, worst outputs and drift."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.catalogue import MEASURES
from pipeline.report.drawing import INK, MUTED, Chart, to_svg
from pipeline.report.language import Translate
from pipeline.report.sweep.marks import MARKS, Key, ends_of, mark, style, swatch, value_of
from pipeline.report.sweep.words import LEVEL, MEASURE, METHOD, Row, counted, plain, short, worst_of
from pipeline.report.view import number

MAX_LINES = 6
_SIZE = (3.3, 2.5)


@dataclass(frozen=True)
class Line:
    """Settings that differ in their level, by level, and how they are drawn."""

    text: str
    settings: list[Row]
    marker: str
    colour: str
    dashes: str


@dataclass(frozen=True)
class Panels:
    """The charts of one measure, with their legend and a sentence on how to read its level."""

    measure: str
    note: str
    keys: list[Key]
    charts: list[Chart]


def sensitivity(sweep: Row, tr: Translate) -> list[Panels]:
    """Of each measure with two levels or more, what the level does."""
    measured: dict[str, list[Row]] = {}
    for one in sweep["settings"]:
        if one.get("measure") is not None and one.get("level") is not None:
            measured.setdefault(str(one["measure"]), []).append(one)
    return [
        _panels(sweep, index, measure, settings, tr)
        for index, (measure, settings) in enumerate(sorted(measured.items()))
        if len({one["level"] for one in settings}) > 1
    ]


def _panels(sweep: Row, index: int, measure: str, settings: Sequence[Row], tr: Translate) -> Panels:
    lines, left_out = _lines(sweep, settings, tr)
    if all(len(line.settings) == 1 for line in lines):
        mixed = tr("each setting; its other options differ too")
        lines, left_out = [Line(mixed, sorted(settings, key=_level), MARKS[0][0], MUTED, "")], 0
    plain_dpo = [one for one in sweep["settings"] if one["method"] == "dpo"]
    base = plain_dpo[0] if len(plain_dpo) == 1 else None
    shown = "".join(letter if letter.isalnum() or letter in "_.:-" else "?" for letter in measure)
    of_worst = tr("Gain of {worst}").format(worst=worst_of(sweep, tr))
    names = (("mean_gain", tr("Average gain")), ("tail_gain", of_worst), ("drift", tr("Drift, nats")))
    label = tr("{title} by level of {measure}")
    charts = [
        _panel(lines, name, title, label.format(title=title, measure=f"{index}-{shown}"), base, tr)
        for name, title in names
    ]
    keys = [
        Key(swatch(f"measure {index} line {place}", line.marker, line.colour, dashes=line.dashes), line.text)
        for place, line in enumerate(lines)
    ]
    if base is not None:
        keys.append(Key(swatch(f"measure {index} dpo", "", INK, dashes=":"), "dpo"))
    return Panels(measure, _level_note(measure, left_out, tr), keys, charts)


def _panel(lines: Sequence[Line], name: str, title: str, label: str, base: Row | None, tr: Translate) -> Chart:
    levels = sorted({_level(one) for line in lines for one in line.settings})
    step = 0.012 * (levels[-1] - levels[0])
    caption = ""
    with mpl.rc_context(style()):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for place, line in enumerate(lines):
            _draw_line(axes, line, name, step * (place - (len(lines) - 1) / 2))
        if name != "drift":
            axes.axhline(0, color=MUTED, linewidth=0.9, zorder=1)
        if base is not None and (value := value_of(base, name)) is not None:
            low, high = axes.get_ylim()
            if low - 1.5 * (high - low) <= value <= high + 1.5 * (high - low):
                axes.axhline(value, color=INK, linestyle=":", linewidth=1.4, zorder=1)
            else:
                caption = tr("dpo, at {value}, lies outside the picture.").format(value=number(value, ".4g"))
        axes.set_xlabel(tr("level"))
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return Chart(title, caption, to_svg(figure, label))


def _draw_line(axes: Any, line: Line, name: str, aside: float) -> None:
    """A line with interval bars; ``aside`` keeps the bars of several lines apart."""
    drawn = [(one, value) for one in line.settings if (value := value_of(one, name)) is not None]
    places = [_level(one) + aside for one, _ in drawn]
    values = [value for _, value in drawn]
    axes.plot(places, values, line.marker, color=line.colour, linestyle=line.dashes, markersize=4, zorder=3)
    for x, (one, _) in zip(places, drawn, strict=True):
        if (ends := ends_of(one["figures"][name])) is not None:
            axes.plot([x, x], ends, color=line.colour, linewidth=0.9, alpha=0.55, zorder=2)


def _lines(sweep: Row, settings: Sequence[Row], tr: Translate) -> tuple[list[Line], int]:
    """Settings that differ in their level only, as lines: the longest few, and how many are left out."""
    chosen = None if sweep["chosen"] is None else sweep["settings"][sweep["chosen"]]
    groups: dict[str, list[Row]] = {}
    for one in settings:
        key = {name: value for name, value in one["options"].items() if name not in (MEASURE, LEVEL)}
        groups.setdefault(json.dumps([one["method"], key], sort_keys=True, default=str), []).append(one)

    def rank(points: list[Row]) -> tuple[int, bool]:
        return -len({_level(one) for one in points}), not any(one is chosen for one in points)

    groups_first = sorted(groups.values(), key=rank)
    different = _different([points[0] for points in groups_first], sweep["dimensions"])
    lines: list[Line] = []
    for points in groups_first[:MAX_LINES]:
        method = str(points[0]["method"])
        free = [one for one in MARKS[1:] if one[0] not in {line.marker for line in lines}]
        # The first line of a method has the method's own mark, as in the charts of the front.
        own = [mark(method)] if mark(method) in free else []
        text = _line_name(points[0], different, sweep["dimensions"], tr)
        lines.append(Line(text, sorted(points, key=_level), *[*own, *reversed(free)][0]))
    return lines, len(groups_first[MAX_LINES:])


def _different(settings: Sequence[Row], dimensions: Sequence[str]) -> list[str]:
    names = [name for name in dimensions if name not in (METHOD, MEASURE, LEVEL)]
    return [name for name in names if len({plain(one["options"].get(name)) for one in settings}) > 1]


def _line_name(setting: Row, different: Sequence[str], dimensions: Sequence[str], tr: Translate) -> str:
    parts = [f"{short(name, dimensions)} {plain(setting['options'].get(name))}" for name in different]
    return tr(", ").join([str(setting["method"]), *parts])


def _level_note(measure: str, left_out: int, tr: Translate) -> str:
    info = MEASURES.get(measure)
    level = None if info is None else info.level
    words = "" if level is None else tr("Level: {meaning}.").format(meaning=tr(level.meaning))
    if left_out:
        words += counted(left_out, tr(" {count} further line not drawn."), tr(" {count} further lines not drawn."))
    return words.strip()


def _level(setting: Row) -> float:
    return float(setting["level"])
