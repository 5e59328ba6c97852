"""The figure: every setting over its drift, dpo's front as a line."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.evaluation.statistics import Estimate
from pipeline.study.measures import BY_NAME
from pipeline.study.results import Row, Study
from pipeline.study.settings import BASELINE, BETA, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = ("mean", "tail", "bits_per_byte", "incidents")
# Colours told apart with any colour vision; a marker for every level, so that grey will do too.
_LOOKS = {
    (BASELINE, None): ("#222222", "o"),
    ("tdpo1", None): ("#56b4e9", "v"),
    ("tdpo2", None): ("#0072b2", "^"),
    ("ra_dpo1", "cvar"): ("#e69f00", "sp*"),
    ("ra_dpo2", "cvar"): ("#d55e00", "Ddh"),
    ("ra_dpo2", "erm"): ("#009e73", "PX<"),
}
_OTHER = ("#8a8a8a", "8>H")


def draw(study: Study) -> bytes:
    """A PNG, the same bytes for the same study: filled at the largest rate, hollow at smaller ones; 95% intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rates = sorted({row.setting.lr for row in study.rows})
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(11.0, 8.6), layout="constrained")
        for axes, name in zip(figure.subplots(2, 2, sharex=True).flat, PANELS, strict=True):
            _panel(axes, study, name, rates[-1])
        figure.supxlabel(
            f"drift: sequential KL on chosen, nats (log scale); filled: rate {rates[-1]:g}"
            + (f", hollow: rate {', '.join(f'{rate:g}' for rate in rates[:-1])}" if rates[:-1] else ""),
            fontsize=10,
        )
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, study: Study, name: str, rate: float) -> None:
    measure = BY_NAME[name]
    axes.axhline(study.reference[name].value, color="#8a8a8a", linestyle=":", linewidth=1.2, label="reference")
    on_front = sorted(
        (row for row in study.rows if row.setting in study.front), key=lambda row: row.cells["drift"].estimate.value
    )
    axes.plot(
        [row.cells["drift"].estimate.value for row in on_front],
        [row.cells[name].estimate.value for row in on_front],
        color="#222222",
        linewidth=1.6,
        label="dpo's front",
        zorder=1,
    )
    looks = _looks([row.setting for row in study.rows])
    for row in sorted(study.rows, key=lambda row: -row.setting.lr):
        _point(axes, row, name, looks, filled=row.setting.lr == rate)
    axes.set_xscale("log")
    better = "higher" if measure.larger_is_better else "lower"
    axes.set_title(f"{measure.title} ({better} is better)", loc="left", fontsize=10)
    axes.set_ylabel(measure.unit)
    axes.grid(color="#e4e8ee")
    axes.set_axisbelow(True)


def _point(axes: Axes, row: Row, name: str, looks: Mapping[str, tuple[str, str]], *, filled: bool) -> None:
    family = _family(row.setting)
    colour, marker = looks[family]
    drift, value = row.cells["drift"].estimate, row.cells[name].estimate
    known = axes.get_legend_handles_labels()[1]
    axes.errorbar(
        [drift.value],
        [value.value],
        xerr=_reach(drift),
        yerr=_reach(value),
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor=colour if filled else "white",
        elinewidth=0.8,
        linestyle="none",
        label=None if family in known else family,
    )
    if row.setting.method == BASELINE:
        at = drift.value, value.value
        named = f"β {row.setting.beta:g}" if row.setting.beta != BETA else f"{row.setting.lr:g}"
        axes.annotate(named, at, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _family(setting: Setting) -> str:
    """A setting whatever its rate and beta."""
    return replace(setting, beta=BETA).label


def _looks(settings: Sequence[Setting]) -> dict[str, tuple[str, str]]:
    """Colour and marker by family; levels of one measure take turns."""
    found: dict[str, tuple[str, str]] = {}
    used: Counter[tuple[str, str | None]] = Counter()
    for setting in settings:
        family, kind = _family(setting), (setting.method, setting.measure)
        if family not in found:
            colour, markers = _LOOKS.get(kind, _OTHER)
            found[family] = colour, markers[used[kind] % len(markers)]
            used[kind] += 1
    return found


def _reach(one: Estimate) -> list[list[float]] | None:
    """From the value to the interval's ends, as error bars are given; a percentile interval may leave the value out."""
    if one.low is None or one.high is None:
        return None
    return [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
