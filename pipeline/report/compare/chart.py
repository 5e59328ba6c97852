"""How the score changes from A to B, output by output."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.report.drawing import FIRST, INK, MUTED, SECOND, STYLE, Chart, to_svg
from pipeline.report.language import Translate, english
from pipeline.report.view import number

_BINS = 12
"""On either side of zero."""


def change_chart(changes: Sequence[float], scorer: str, tr: Translate = english) -> Chart:
    """Histogram of the paired differences B - A of a score: losses hatched, gains plain, so that grey shows both."""
    values = np.asarray(changes, dtype=np.float64)
    reach = float(np.abs(values).max()) or 1.0
    lost, same, gained = values[values < 0], int((values == 0).sum()), values[values > 0]
    weight = 1.0 / len(values)
    title = tr("Change of the {scorer} score from A to B").format(scorer=scorer)
    with mpl.rc_context(STYLE | {"text.parse_math": False, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(6.2, 2.6), layout="constrained")
        axes = figure.subplots()
        for part, edges, colour, hatch, label in (
            (lost, np.linspace(-reach, 0, _BINS + 1), SECOND, "////", tr("B lost")),
            (gained, np.linspace(0, reach, _BINS + 1), FIRST, "", tr("B gained")),
        ):
            axes.hist(
                part,
                bins=list(edges),
                weights=np.full(len(part), weight),
                color=colour,
                edgecolor="white",
                linewidth=0.5,
                hatch=hatch,
                label=label,
            )
        axes.axvline(0, color=MUTED, linewidth=1.0)
        mean = float(values.mean())
        label = tr("mean: {value}").format(value=number(mean, "+.3f"))
        axes.axvline(mean, color=INK, linestyle="--", linewidth=1.6, label=label)
        axes.set_xlim(-reach * 1.02, reach * 1.02)
        axes.set_xlabel(tr("B − A, {scorer} score of the same prompt and seed").format(scorer=scorer))
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        figure.legend(frameon=False, fontsize=8.5, ncols=3, loc="outside upper center")
        caption = tr("{count} outputs; {same} of them with the same score on both sides, not drawn.").format(
            count=f"{len(values):,}", same=f"{same:,}"
        )
        return Chart(title, caption, to_svg(figure, title))
