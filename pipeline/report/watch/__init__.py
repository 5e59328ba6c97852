"""The page of a watch over production."""

from pipeline.report.watch.render import render_watch

__all__ = ["render_watch"]
