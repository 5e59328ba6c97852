"""What every chart shares: colours, style, and one SVG element, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from matplotlib.figure import Figure

INK, MUTED, FIRST, SECOND = "#1c2430", "#6b7480", "#1f5fa8", "#c2571a"
STYLE = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e8ee",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Chart:
    """One figure of a page: its SVG element, its title and a sentence on how to read it."""

    title: str
    caption: str
    svg: str


def to_svg(figure: Figure, title: str) -> str:
    """The figure as one <svg> element without prolog, metadata or ids that another chart could share."""
    buffer = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=none, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    text = re.sub(r"<svg\b", f'<svg role="img" aria-label="{label}"', text, count=1)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
