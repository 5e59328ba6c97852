"""What every chart shares: colours, style, and one SVG element, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import dataclass
from xml.sax.saxutils import escape

from matplotlib.figure import Figure
from matplotlib.text import Text

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
    laid_out = _lay_out_wide_text(figure)
    buffer = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=none, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for name, (stand_in, words) in laid_out.items():
        head, group, rest = text.partition(f'<g id="{name}"')
        text = head + group + rest.replace(f">{escape(stand_in)}<", f">{escape(words)}<", 1)
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    text = re.sub(r"<svg\b", f'<svg role="img" aria-label="{label}"', text, count=1)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def _lay_out_wide_text(figure: Figure) -> dict[str, tuple[str, str]]:
    """Stand-ins for the texts with characters of Chinese and Japanese width: by the id of each, stand-in and words.

    matplotlib's own font lacks these characters and would warn of each and take it for a narrow box. A browser draws
    them in a font of the reader's, one em wide; so is the dash that holds their place while the chart is laid out.
    """
    found: dict[str, tuple[str, str]] = {}
    for one in figure.findobj(Text):
        words = one.get_text()
        stand_in = "".join("—" if unicodedata.east_asian_width(letter) in "WF" else letter for letter in words)
        if stand_in != words:
            name = f"words-{len(found)}"
            found[name] = stand_in, words
            one.set_gid(name)
            one.set_text(stand_in)
    return found
