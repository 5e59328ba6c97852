"""Gains against drift: which settings no other one beats, and where the limits are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pipeline.report.drawing import INK, MUTED, Chart, to_svg
from pipeline.report.language import Translate, sense
from pipeline.report.sweep.marks import Key, ends_of, mark, order, ring_style, style, swatch, value_of
from pipeline.report.sweep.words import Row, worst_of
from pipeline.report.view import number

_MANY = 30
"""Above so many settings only those on the front get interval bars."""
_SIZE = (4.6, 3.3)
_REFUSED = "#eceff3"
_TALL_RANGE = 8
"""A drift that differs by more than this factor is drawn on a logarithmic scale."""


def front_charts(sweep: Row, tr: Translate) -> tuple[list[Chart], list[Key]]:
    """Average and worst outputs against drift, and their legend; empty when nothing finished."""
    if not sweep["settings"]:
        return [], []
    drop = sweep["tolerance"].get("tail_drop")
    floor = None if drop is None else -float(drop)
    of_worst = tr("Gain of {worst} against drift").format(worst=worst_of(sweep, tr))
    charts = [
        _front_chart(sweep, "mean_gain", tr("Average gain against drift"), None, tr),
        _front_chart(sweep, "tail_gain", of_worst, floor, tr),
    ]
    methods = sorted({str(one["method"]) for one in sweep["settings"]}, key=order)
    keys = [Key(swatch(f"front {index}", *mark(name)[:2]), name) for index, name in enumerate(methods)]
    keys.append(Key(swatch("front hollow", "o", MUTED, hollow=True), tr("hollow: not on the front")))
    if sweep["chosen"] is not None:
        keys.append(Key(swatch("front chosen", "", INK, ring="-"), tr(sense("setting", "chosen"))))
    if sweep["runner_up"] is not None:
        keys.append(Key(swatch("front runner-up", "", INK, ring=":"), tr(sense("setting", "runner-up"))))
    if drop is not None or sweep["tolerance"].get("max_drift") is not None:
        keys.append(Key(swatch("front limit", "", INK, dashes="--"), tr("limit; grey is beyond it")))
    return charts, keys


def ranked(settings: Sequence[Row]) -> list[int]:
    """Positions of the settings in the order of the tables: by average gain, the best first."""

    def gain(index: int) -> tuple[bool, float, int]:
        value = value_of(settings[index], "mean_gain")
        return value is None, -(value or 0.0), index

    return sorted(range(len(settings)), key=gain)


def _front_chart(sweep: Row, name: str, title: str, floor: float | None, tr: Translate) -> Chart:
    settings, limit = sweep["settings"], sweep["tolerance"].get("max_drift")
    places = ranked(settings)
    shown = [
        i for i in places if value_of(settings[i], name) is not None and value_of(settings[i], "drift") is not None
    ]
    barred = [i for i in shown if len(shown) <= _MANY or settings[i]["front"] or i == sweep["chosen"]]
    across, up = _window(settings, shown, barred, "drift"), _window(settings, shown, barred, name, with_zero=True)
    lowest = min((float(settings[i]["figures"]["drift"]["value"]) for i in shown), default=0.0)
    tall = lowest > 0 and across[1] > _TALL_RANGE * lowest
    if tall:
        across = lowest / 1.5, across[1] * 1.2
    across, limit_drawn = _reach_log(across, limit) if tall else _reach(across, limit)
    up, floor_drawn = _reach(up, floor)
    with mpl.rc_context(style()):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        if tall:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(*across)
        axes.set_ylim(*up)
        _draw_limits(axes, limit if limit_drawn else None, floor if floor_drawn else None, across, up)
        front = _flat_front(settings, shown, name)
        axes.plot(*_coordinates(settings, front, name), color=MUTED, linewidth=1.2, zorder=2)
        for index in shown:
            _draw_point(axes, settings[index], name, bars=index in barred, left=across[0])
        for index, dashes in ((sweep["runner_up"], ":"), (sweep["chosen"], "-")):
            if index in shown:
                axes.plot(*_coordinates(settings, [index], name), **ring_style(dashes))
        first = {sweep["chosen"], sweep["runner_up"]}
        ranks = sorted(shown, key=lambda index: (index not in first, not settings[index]["front"]))
        _label(axes, {index: _coordinates(settings, [index], name) for index in ranks}, places)
        axes.set_xlabel(tr("drift, nats (logarithmic)") if tall else tr("drift, nats"))
        axes.set_ylabel(tr("gain over the reference"))
        outside = (None if limit_drawn else limit), (None if floor_drawn else floor)
        caption = _front_caption(barred == shown, *outside, tr)
        return Chart(title, caption, to_svg(figure, title))


def _draw_limits(
    axes: Any, limit: float | None, floor: float | None, across: tuple[float, float], up: tuple[float, float]
) -> None:
    axes.axhline(0, color=MUTED, linestyle=":", linewidth=1.2, zorder=1)
    if limit is not None:
        axes.axvspan(limit, across[1], color=_REFUSED, zorder=0)
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1.2, zorder=1)
    if floor is not None:
        axes.axhspan(up[0], floor, color=_REFUSED, zorder=0)
        axes.axhline(floor, color=INK, linestyle="--", linewidth=1.2, zorder=1)


def _draw_point(axes: Any, setting: Row, name: str, *, bars: bool, left: float) -> None:
    marker, colour, _ = mark(str(setting["method"]))
    drift, gain = setting["figures"]["drift"], setting["figures"][name]
    if bars:
        thin = {"color": colour, "linewidth": 0.8, "alpha": 0.5, "zorder": 2}
        if (ends := ends_of(drift)) is not None:
            axes.plot([max(ends[0], left), ends[1]], [gain["value"]] * 2, **thin)
        if (ends := ends_of(gain)) is not None:
            axes.plot([drift["value"]] * 2, ends, **thin)
    fill = colour if setting["front"] else "white"
    axes.plot([drift["value"]], [gain["value"]], marker, color=colour, markersize=5, markerfacecolor=fill, zorder=4)


def _front_caption(all_bars: bool, limit: float | None, floor: float | None, tr: Translate) -> str:
    """How to read a chart; ``limit`` and ``floor`` are those that it does not show."""
    every, front_only = tr("Bars: 95% intervals."), tr("Bars: 95% intervals (of the front only).")
    words = tr(
        "Up and left is better. {bars} Numbers, where there is room, are those of the table; the line joins settings "
        "that no other beats in both figures shown."
    ).format(bars=every if all_bars else front_only)
    if limit is not None:
        words += tr(" The limit of {limit} nats lies outside the picture.").format(limit=f"{limit:g}")
    if floor is not None:
        words += tr(" The limit of {limit} lies outside the picture.").format(limit=number(floor, "g"))
    return words


def _flat_front(settings: Sequence[Row], shown: Sequence[int], name: str) -> list[int]:
    """Settings of the front that no other one beats in this figure and drift, by drift: a line without turns."""
    by_drift = sorted(
        (index for index in shown if settings[index]["front"]),
        key=lambda index: (value_of(settings[index], "drift"), -(value_of(settings[index], name) or 0.0)),
    )
    found: list[int] = []
    for index in by_drift:
        if not found or (value_of(settings[index], name) or 0.0) > (value_of(settings[found[-1]], name) or 0.0):
            found.append(index)
    return found


def _label(axes: Any, points: Mapping[int, tuple[list[Any], list[Any]]], places: Sequence[int]) -> None:
    """The number in the table beside each point, the first points first, where no other number is too near."""
    taken: list[tuple[float, float]] = []
    for index, ((x,), (y,)) in points.items():
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all(abs(across - one) > 0.055 or abs(up - other) > 0.055 for one, other in taken):
            taken.append((across, up))
            number_of = f"{places.index(index) + 1}"
            axes.annotate(number_of, (x, y), (5, 5), textcoords="offset points", fontsize=8, zorder=6)


def _coordinates(settings: Sequence[Row], indices: Iterable[int], name: str) -> tuple[list[Any], list[Any]]:
    places = list(indices)
    return [value_of(settings[i], "drift") for i in places], [value_of(settings[i], name) for i in places]


def _window(
    settings: Sequence[Row], shown: Sequence[int], barred: Sequence[int], name: str, *, with_zero: bool = False
) -> tuple[float, float]:
    """The stretch of an axis that holds all values and drawn intervals, with a margin."""
    values = [value for i in shown if (value := value_of(settings[i], name)) is not None]
    values += [end for i in barred for end in ends_of(settings[i]["figures"][name]) or ()]
    values += [0.0] if with_zero or not values else []
    low, high = min(values), max(values)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _reach(window: tuple[float, float], limit: float | None) -> tuple[tuple[float, float], bool]:
    """The window, widened for a limit that is near; whether the limit lies in it."""
    if limit is None:
        return window, False
    low, high = window
    span = high - low
    if not low - span / 2 <= limit <= high + span / 2:
        return window, False
    return (min(low, limit - 0.05 * span), max(high, limit + 0.05 * span)), True


def _reach_log(window: tuple[float, float], limit: float | None) -> tuple[tuple[float, float], bool]:
    """The same on a logarithmic scale."""
    if limit is None or limit <= 0:
        return window, False
    (low, high), drawn = _reach((math.log(window[0]), math.log(window[1])), math.log(limit))
    return (math.exp(low), math.exp(high)), drawn
