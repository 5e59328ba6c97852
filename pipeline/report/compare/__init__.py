"""The page of a comparison: `render_compare` makes it from the content of compare.json; `headline` is its verdict."""

from pipeline.report.compare.render import render_compare
from pipeline.report.compare.words import headline

__all__ = ["headline", "render_compare"]
