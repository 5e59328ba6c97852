"""Risk, drift and the primary score day by day, beside what the baseline had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.drawing import FIRST, MUTED, STYLE, Chart, to_svg
from pipeline.report.language import Translate, english
from pipeline.report.watch.words import measure_title

_SIZE = (4.6, 2.7)


def day_charts(content: Mapping[str, Any], tr: Translate = english) -> list[Chart]:
    """A chart for risk, KL and the primary score each, of the days that have any outputs."""
    wanted = [name for name in ("risk", "kl", content["primary"]) if name in content["measures"]]
    return [chart for name in wanted if (chart := _chart(content, name, tr)) is not None]


def _chart(content: Mapping[str, Any], measure: str, tr: Translate) -> Chart | None:
    days = [(one["day"], one["quantiles"][measure]) for one in content["days"] if measure in one["quantiles"]]
    if not days:
        return None
    low, middle, high = ([values[i] for _, values in days] for i in range(3))
    places = list(range(len(days)))
    band = content["bands"].get(measure)
    with mpl.rc_context(STYLE | {"text.parse_math": False}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        if band is not None:
            axes.axhspan(band[0], band[2], color=MUTED, alpha=0.18, linewidth=0, label=tr("baseline, 10% to 90%"))
            axes.axhline(band[1], color=MUTED, linestyle=":", linewidth=1.2)
        axes.vlines(places, low, high, color=FIRST, linewidth=2.2, label=tr("10% to 90% of outputs"))
        axes.plot(places, middle, color=FIRST, marker="o", markersize=4.5, linewidth=1.2, label=tr("median"))
        axes.set_xticks(places[:: max(1, len(days) // 6)], [day[5:] for day, _ in days][:: max(1, len(days) // 6)])
        axes.set_xlim(-0.6, len(days) - 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(frameon=False, fontsize=8.5, ncols=2, loc="outside upper center")
        caption = tr("Days are those of the log (UTC); of each at most 200 outputs, drawn at random.")
        title = measure_title(measure, tr)
        return Chart(title, caption, to_svg(figure, f"watch {measure}"))
