"""The page on a sweep: which of many settings was chosen, why, what it cost, and how far the evidence goes.

`render_sweep` makes it from the content of sweep.json and nothing else.
"""

from pipeline.report.sweep.render import render_sweep

__all__ = ["render_sweep"]
