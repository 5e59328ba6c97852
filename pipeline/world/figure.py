"""The figure: what each level changes beside dpo at the same drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.world.experiment import FAMILIES, Row

PLACE = "drift 0.1"
PANELS = {
    "mean": ("mean reward", 1.0),
    "cvar_10": ("mean reward of the worst 10%", 1.0),
    "catastrophe": ("catastrophes in 1,000 responses", 1000.0),
}
_COLOURS = ("#0072b2", "#d55e00", "#e69f00")  # told apart with any colour vision; markers differ too
_MARKERS = ("o", "s", "^")


def draw(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A row of panels for each kind of evidence, a panel for each measure, a line for each family."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(11.0, 6.4), layout="constrained")
        for axes_of_row, (evidence, its_rows) in zip(figure.subplots(len(rows), 3), rows.items(), strict=True):
            for axes, (name, (title, unit)) in zip(axes_of_row, PANELS.items(), strict=True):
                axes.axhline(0.0, color="#444444", linewidth=1.2, linestyle="--", label="dpo")
                for number, family in enumerate(FAMILIES):
                    points = [
                        (row.level, unit * here[name].difference, unit * here[name].standard_error)
                        for row in its_rows
                        if row.family == family and (here := row.at[PLACE]) is not None
                    ]
                    if points:
                        levels, differences, errors = zip(*points, strict=True)
                        axes.errorbar(
                            levels,
                            differences,
                            yerr=errors,
                            color=_COLOURS[number],
                            marker=_MARKERS[number],
                            capsize=3,
                            label=family.name,
                        )
                axes.set_title(f"{title}\n{evidence}", loc="left", fontsize=10)
                axes.set_xlim(1.04, 0.26)
                axes.grid(color="#e4e8ee")
            axes_of_row[0].set_ylabel("difference from dpo at the same drift")
        figure.supxlabel("level of CVaR in the loss: 1 is neutral, further right is more averse", fontsize=10)
        figure.axes[0].legend(frameon=False, loc="lower left")
        figure.savefig(path, dpi=110)
