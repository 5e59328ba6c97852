"""What an analysis hands to tables, figure and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.statistics import Estimate
from pipeline.study.compare import Axis
from pipeline.study.settings import Setting


@dataclass(frozen=True)
class Cell:
    """A setting's figure: its mean over seeds."""

    estimate: Estimate
    deviation: float | None
    """Standard deviation over seeds."""
    difference: Estimate | None
    """From dpo at the same rate and beta `pipeline.study.settings.BETA`; None for that one itself."""


@dataclass(frozen=True)
class Row:
    """One setting."""

    setting: Setting
    seeds: tuple[int, ...]
    seconds: float | None
    """Of alignment, the mean over its runs that tell."""
    cells: Mapping[str, Cell]
    """By the name of the measure."""


@dataclass(frozen=True)
class Difference:
    """From dpo's front, at one place."""

    estimate: Estimate
    by_seed: tuple[float, ...]
    """With each seed alone, on the front of that seed."""
    p: float
    corrected: float | None = None
    """By Holm, where it is of the family of tests."""


@dataclass(frozen=True)
class Matched:
    """A setting where dpo's front has the same drift or mean."""

    setting: Setting
    at: Estimate
    """The drift or mean."""
    reason: str | None
    """Why there is no match; None where there is one."""
    outside: float
    """Share of resamples that took an end of the front."""
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Record:
    """One run."""

    name: str
    setting: Setting
    seed: int
    seconds: float | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """What came of it, given one reference and one split of the data."""

    basis: Mapping[str, Any]
    """What it is conditional on, and how much there was."""
    reference: Mapping[str, Estimate]
    rows: tuple[Row, ...]
    front: tuple[Setting, ...]
    """dpo's points that settings are matched with."""
    matched: Mapping[Axis, tuple[Matched, ...]]
    bends: Mapping[Axis, tuple[Matched, ...]]
    """The front's inner points beside the front without them: how far straight lines miss it."""
    runs: tuple[Record, ...]
