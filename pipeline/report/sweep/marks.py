"""What the charts of a sweep share: marks that differ without colour, their legends, and figures as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.report.drawing import INK, STYLE, to_svg
from pipeline.report.sweep.words import Row

METHODS = ("dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2")
MARKS = (
    ("o", "#1c2430", "-"),
    ("v", "#8a6d1a", "--"),
    ("^", "#2d7d46", "-."),
    ("D", "#7a4aa8", ":"),
    ("s", "#1f5fa8", "-"),
    ("P", "#c2571a", "--"),
    ("X", "#7d1d1d", "-."),
)
"""Marker, colour and dashes: whoever sees no colours still tells them apart."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a small picture and what it stands for."""

    svg: str
    text: str


def swatch(
    name: str, marker: str, colour: str, *, hollow: bool = False, dashes: str = "", ring: str | None = None
) -> str:
    """A legend's small picture."""
    with mpl.rc_context(style()):
        figure = Figure(figsize=(0.46, 0.22))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        if dashes:
            axes.plot([0, 1], [0.5, 0.5], color=colour, linestyle=dashes, linewidth=1.5)
        if marker:
            face = "white" if hollow else colour
            axes.plot([0.5], [0.5], marker, color=colour, markersize=5.5, markerfacecolor=face)
        if ring is not None:
            axes.plot([0.5], [0.5], **ring_style(ring))
        return to_svg(figure, f"key {name}").replace("<svg ", '<svg aria-hidden="true" ', 1)


def ring_style(dashes: str) -> dict[str, Any]:
    """How the ring around a point is drawn: thick for the chosen setting, thin for the runner-up."""
    ring: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 12, "markerfacecolor": "none", "zorder": 5}
    return ring | {"markeredgecolor": INK, "markeredgewidth": 1.6 if dashes == "-" else 0.9}


def style() -> dict[str, Any]:
    """The style of all charts; text is never read as mathematics."""
    return {**STYLE, "text.parse_math": False}


def mark(method: str) -> tuple[str, str, str]:
    """Marker, colour and dashes of a method, the same in every sweep."""
    return MARKS[METHODS.index(method)] if method in METHODS else MARKS[5 + len(method) % 2]


def order(method: str) -> tuple[int, str]:
    """What methods are sorted by."""
    return (METHODS.index(method) if method in METHODS else len(METHODS)), method


def value_of(setting: Row, name: str) -> float | None:
    """A figure of a setting, None where there is none."""
    figure = setting["figures"].get(name)
    return None if figure is None or figure["value"] is None else float(figure["value"])


def ends_of(figure: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of a figure, None where there is none."""
    return None if figure["low"] is None or figure["high"] is None else (float(figure["low"]), float(figure["high"]))
