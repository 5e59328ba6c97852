"""Choosing between finished runs by what their user tolerates. Pure but for the reading of their summaries."""
