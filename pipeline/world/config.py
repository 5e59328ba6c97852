"""Options of the experiment in known worlds (nothing heavy is imported here)."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from pipeline.section import Section


class WorldExperiment(Section):
    """Train every method at every risk level in small worlds whose truth can be enumerated."""

    worlds: int = Field(20, ge=2)
    """Worlds drawn at random, each with its own data; averages and standard errors are over them."""
    pairs: PositiveInt = 200
    """Preference pairs in a world's data set, beside the run in which every pair is known."""
    steps: PositiveInt = 200
    """Steps of every training, full batch."""
    seed: int = Field(0, ge=0)
    """Of the first world and its data; the others follow it."""
    figure: str = "runs/world.png"
    """File for the figure."""
    output: str = "runs/world.json"
    """File for the figures in numbers."""
