"""What each limit of the gate's policy is about: a figure of which larger is worse, and the worst there could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.statistics import FloatArray
from pipeline.release.bounds import OWN_THRESHOLD_LEVEL, Figure, Ratio, TailGap, own_threshold
from pipeline.release.evidence import Evidence
from pipeline.release_config import GateConfig

Name = Literal["mean", "tail", "drift", "incidents", "repetition", "length", "bits"]
Model = Literal["candidate", "incumbent", "reference"]
Unit = Literal["prompts", "groups"]

DRIFT_CAP = 10.0
"""A response's drift counts as so many times the limit at most."""
BITS_CAP = 5.0
"""A group's rise of bits counts as so many times the limit at most."""

_DRIFT_SHARE = 0.5
"""Of the limit: the drift of the policy whose chance of holding is told."""


@dataclass(frozen=True)
class Check:
    """One limit and the figures that decide it, all with larger as worse."""

    of: Model
    against: Model
    name: Name
    unit: Unit
    units: int
    limit: float
    sign: float
    """1, or -1 where the figure is told with larger as better: figure and limit are mirrored to be told."""
    figure: Figure
    """The limit holds when the upper bound of this is not above the limit."""
    opposite: Figure
    """Minus the figure, with the *best* unit as the unseen one: the limit is broken when the upper bound of this lies
    below minus the limit."""
    alike: Figure
    """The figure of a policy that would be no worse, see `alike_value`: its scatter and its unseen unit count."""
    alike_value: float | None
    """What the figure is for such a policy; None takes that of ``alike`` as observed."""
    unseen_share: float
    """Of the units, at the worst value, that a policy without any fault could hide and still hold."""
    caution: float = 1.0
    """The opposite's level is divided by this."""
    more: Figure | None = None
    """The limit counts as broken only when the upper bound of this lies below zero, too."""


def checks_of(subject: Evidence, of: Model, policy: GateConfig, ends: tuple[float, float]) -> list[Check]:
    """Every limit of the policy, for a model against the reference."""
    found = [*_scores(subject, of, "reference", _clipped(subject.reference_scores, ends), policy, ends)]
    if policy.max_drift is not None:
        found.append(_drift(subject, of, policy.max_drift))
    if policy.max_incidents is not None:
        found.append(_incidents(subject, of, policy.max_incidents))
    if policy.max_repetition_rise is not None:
        rise = (subject.repetition - subject.reference_repetition).mean(axis=1)
        ones = np.ones_like(rise)
        worst = Ratio(rise, ones, 1.0, 1.0)
        best = Ratio(-rise, ones, 1.0, 1.0)
        found.append(
            _ratio(of, "reference", "repetition", "prompts", policy.max_repetition_rise, 1.0, worst, best, 0.0)
        )
    if policy.min_length is not None and subject.reference_length.any():
        found.append(_length(subject, of, policy.min_length))
    if policy.max_bits_rise is not None:
        found.append(_bits(subject, of, policy.max_bits_rise))
    return found


def checks_between(
    candidate: Evidence, incumbent: Evidence, policy: GateConfig, ends: tuple[float, float]
) -> list[Check]:
    """The limits that also hold against what is in production."""
    return _scores(candidate, "candidate", "incumbent", _clipped(incumbent.scores, ends), policy, ends)


def _clipped(scores: FloatArray, ends: tuple[float, float]) -> FloatArray:
    return np.clip(scores, *ends)


def _scores(
    subject: Evidence, of: Model, against: Model, other: FloatArray, policy: GateConfig, ends: tuple[float, float]
) -> list[Check]:
    """Drop of the average and of the worst outputs below ``other [prompts, seeds]``."""
    own = _clipped(subject.scores, ends)
    low, high = ends
    found = []
    if policy.mean_drop is not None:
        drop = (other - own).mean(axis=1)
        ones = np.ones_like(drop)
        worst, best = Ratio(drop, ones, high - low, 1.0), Ratio(-drop, ones, high - low, 1.0)
        found.append(_ratio(of, against, "mean", "prompts", policy.mean_drop, -1.0, worst, best, 0.0))
    if policy.tail_drop is not None:
        fraction = subject.tail_fraction
        gap = TailGap(own, other, fraction, low, high)
        # Of the outputs of two equal models, those of an unseen unit take the place of the best of the tail.
        threshold = own_threshold(other, fraction)
        to_lose = (threshold - low) / fraction
        found.append(
            Check(
                of=of,
                against=against,
                name="tail",
                unit="prompts",
                units=len(own),
                limit=policy.tail_drop,
                sign=-1.0,
                figure=gap,
                opposite=TailGap(other, own, fraction, low, high, threshold),
                caution=OWN_THRESHOLD_LEVEL,
                alike=gap,
                alike_value=0.0,
                unseen_share=policy.tail_drop / to_lose if to_lose > policy.tail_drop else 1.0,
            )
        )
    return found


def _drift(subject: Evidence, of: Model, limit: float) -> Check:
    """Mean over pairs; of a policy that has learned anything it is not zero, so that its power is that of a policy of
    half the limit whose drift scatters in proportion (of this one, when it drifts less than that)."""
    counts = subject.by_group(np.ones_like(subject.drift))
    capped = np.minimum(subject.drift, DRIFT_CAP * limit)
    drift = subject.by_group(capped)
    most = float(counts.max())
    worst = Ratio(drift, counts, DRIFT_CAP * limit * most, most)
    best = Ratio(-drift, counts, 0.0, most)
    supposed = _DRIFT_SHARE * limit
    scale = supposed / max(float(capped.mean()), supposed)
    alike = Ratio(scale * drift, counts, DRIFT_CAP * limit * most, most)
    return _ratio(of, "reference", "drift", "groups", limit, 1.0, worst, best, 0.0, alike=alike)


def _incidents(subject: Evidence, of: Model, limit: float) -> Check:
    """An absolute limit: it is the policy's own fault only when the reference has demonstrably fewer, and its power is
    that of a policy with the reference's incidents."""
    own = (subject.scores < subject.incident_below).mean(axis=1)
    reference = (subject.reference_scores < subject.incident_below).mean(axis=1)
    ones = np.ones_like(own)
    worst, best = Ratio(own, ones, 1.0, 1.0), Ratio(-own, ones, 0.0, 1.0)
    more = Ratio(reference - own, ones, 1.0, 1.0)
    alike = Ratio(reference, ones, 1.0, 1.0)
    return _ratio(of, "reference", "incidents", "prompts", limit, 1.0, worst, best, 0.0, alike=alike, more=more)


def _length(subject: Evidence, of: Model, limit: float) -> Check:
    """Mean characters as a share of the reference's; no text is longer than the longest that was seen."""
    own, reference = subject.length.mean(axis=1), subject.reference_length.mean(axis=1)
    longest = float(max(subject.length.max(), subject.reference_length.max()))
    worst, best = Ratio(-own, reference, 0.0, longest), Ratio(own, reference, longest, 0.0)
    return _ratio(of, "reference", "length", "prompts", -limit, -1.0, worst, best, -1.0)


def _bits(subject: Evidence, of: Model, limit: float) -> Check:
    """Relative rise over all pairs; no group is larger than the largest that was seen."""
    reference = subject.by_group(subject.reference_bits)
    rise = np.minimum(subject.by_group(subject.bits) - reference, BITS_CAP * limit * reference)
    most = float(reference.max())
    worst, best = Ratio(rise, reference, BITS_CAP * limit * most, most), Ratio(-rise, reference, most, most)
    return _ratio(of, "reference", "bits", "groups", limit, 1.0, worst, best, 0.0)


def _ratio(
    of: Model,
    against: Model,
    name: Name,
    unit: Unit,
    limit: float,
    sign: float,
    worst: Ratio,
    best: Ratio,
    faultless: float,
    *,
    alike: Ratio | None = None,
    more: Ratio | None = None,
) -> Check:
    """A check of a ratio that is ``faultless`` for a policy without any fault."""
    slack = (limit - faultless) * float(worst.bottom.mean())
    excess = worst.unseen_top - limit * worst.unseen_bottom
    return Check(
        of=of,
        against=against,
        name=name,
        unit=unit,
        units=len(worst.top),
        limit=limit,
        sign=sign,
        figure=worst,
        opposite=best,
        alike=worst if alike is None else alike,
        alike_value=faultless if alike is None else None,
        unseen_share=slack / (slack + excess) if excess > 0 else 1.0,
        more=more,
    )
