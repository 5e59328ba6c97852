"""Charts as inline SVG: small, the same bytes for the same numbers, readable in grey and on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.drawing import FIRST, INK, MUTED, STYLE, Chart, to_svg
from pipeline.report.inputs import Row
from pipeline.report.language import Translate, english

TAIL, BODY = "#7d1d1d", "#b9c6d6"
_MAX_POINTS = 400
_SIZE = (4.6, 2.7)


@dataclass(frozen=True)
class Line:
    """One curve of `curve_chart`: rows of ``split`` that hold ``key``; drawn dashed to differ in grey."""

    label: str
    split: str
    key: str
    colour: str = FIRST
    dashed: bool = False


def curve_chart(
    rows: Sequence[Row],
    lines: Sequence[Line],
    *,
    title: str,
    caption: str,
    level: tuple[float, str] | None = None,
    tr: Translate = english,
) -> Chart | None:
    """Curves over optimiser steps, or None when no row holds any of them.

    ``level`` is a horizontal line to compare with and its label.
    """
    drawn = [(line, points) for line in lines if (points := _points(rows, line))]
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for line, points in drawn:
            steps, values = zip(*points, strict=True)
            few = len(points) <= 30
            axes.plot(
                steps,
                values,
                color=line.colour,
                linestyle="--" if line.dashed else "-",
                marker=("s" if line.dashed else "o") if few else None,
                markersize=3.5,
                label=line.label,
            )
        if level:
            axes.axhline(level[0], color=MUTED, linestyle=":", linewidth=1.2, label=level[1])
        axes.set_xlabel(tr("optimiser step"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(drawn) > 1 or level:
            axes.legend(frameon=False, fontsize=8.5)
        return Chart(title, caption, to_svg(figure, title))


def score_chart(
    scores: Sequence[float],
    *,
    title: str,
    scorer: str,
    tail_fraction: float,
    tail_mean: float,
    mean: float,
    limits: tuple[float, float],
    top_share: float,
    tr: Translate = english,
) -> Chart:
    """Histogram of one model's scores with its worst ``tail_fraction`` dark, its mean and its tail mean (CVaR).

    ``limits`` and ``top_share`` (the highest bar's share) are common to the models that are compared.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    in_tail = max(1, round(len(ordered) * tail_fraction))
    edges = score_bins(limits)
    share = f"{tail_fraction:.0%}"
    weight = 1.0 / len(ordered)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        parts = [ordered[:in_tail], ordered[in_tail:]]
        axes.hist(
            parts,
            bins=list(edges),
            weights=[np.full(len(part), weight) for part in parts],
            stacked=True,
            color=[TAIL, BODY],
            edgecolor="white",
            linewidth=0.5,
            label=[tr("worst {share}").format(share=share), tr("all others")],
        )
        of_worst = tr("mean of worst: {value}").format(value=_short(tail_mean))
        axes.axvline(tail_mean, color=TAIL, linestyle="--", linewidth=1.6, label=of_worst)
        axes.axvline(mean, color=INK, linewidth=1.6, label=tr("mean: {value}").format(value=_short(mean)))
        axes.set_xlim(*limits)
        axes.set_ylim(0, top_share * 1.05)
        axes.set_xlabel(tr("{scorer} score").format(scorer=scorer))
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        figure.legend(frameon=False, fontsize=8.5, ncols=2, loc="outside upper center")
        caption = tr("{count} outputs; dark: the worst {share}; dashed: their mean (CVaR).")
        return Chart(title, caption.format(count=len(ordered), share=share), to_svg(figure, title))


def score_bins(limits: tuple[float, float]) -> np.ndarray:
    """Edges of 24 equal bins between the limits."""
    return np.linspace(limits[0], limits[1], 25)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _points(rows: Sequence[Row], line: Line) -> list[tuple[float, float]]:
    points = [
        (float(row["step"]), float(row[line.key]))
        for row in rows
        if row.get("split") == line.split and row.get("step") is not None and row.get(line.key) is not None
    ]
    finite = sorted(point for point in points if math.isfinite(point[1]))
    if len(finite) <= _MAX_POINTS:
        return finite
    # A long run is drawn as means over equal stretches, which hides no trend and keeps the page small.
    return [tuple(np.mean(part, axis=0).tolist()) for part in np.array_split(np.array(finite), _MAX_POINTS)]
