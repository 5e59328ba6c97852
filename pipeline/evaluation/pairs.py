"""What both models say of the held-out pairs: reward accuracy, drift, and how well they predict real text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.config import SEQUENTIAL_METHODS
from pipeline.errors import EvaluationError
from pipeline.evaluation.statistics import Estimate, FloatArray, IndexArray, ratio_estimates
from pipeline.records import PairScores

BITS = ("bits_per_byte", "bits_per_byte_chosen", "bits_per_byte_rejected")
NUMBERS = ("chosen_logp", "chosen_ref_logp", "rejected_logp", "rejected_ref_logp", "chosen_bytes", "rejected_bytes")


def summarise_pairs(pairs: list[PairScores], method: str, risk_label: str, *, resamples: int) -> dict[str, Any]:
    """The ``pairs`` part of evaluation.json; every figure is ``{"value", "low", "high"}``, resampled by group.

    ``reward_accuracy``: share of pairs whose log pi/pi_ref is larger on chosen than on rejected, for every
    method. ``implicit_reward_accuracy``: the same with D of the trained measure (``risk_label``) added to
    the log-ratio, for the sequential methods only, otherwise None. ``chosen_risk`` and ``rejected_risk``:
    mean sequential risk by label, nats. ``chosen_logp_change`` and ``rejected_logp_change``: mean of
    log pi - log pi_ref, nats. ``bits_per_byte``: sum of -log p / (bytes * ln 2) over chosen and rejected
    responses (the end-of-sequence token costs bits too), for both models and their difference, with
    ``relative_change``; ``bits_per_byte_chosen`` and ``bits_per_byte_rejected`` apart. A figure without any
    byte is None. Raises `EvaluationError` when there are no pairs, when a number is not finite (naming the
    row), or when the trained measure's risk is missing.
    """
    if not pairs:
        raise EvaluationError(
            "there are no held-out pairs to evaluate: raise the fraction of evaluation.split in data, or give more data"
        )
    ordered = sorted(pairs, key=lambda pair: (pair.group, pair.row_id))
    sequential = method in SEQUENTIAL_METHODS
    labels = _check(ordered, risk_label if sequential else None)

    column = {name: np.array([getattr(pair, name) for pair in ordered], dtype=np.float64) for name in NUMBERS}
    chosen_risk = {label: np.array([pair.chosen_risk[label] for pair in ordered]) for label in labels}
    rejected_risk = {label: np.array([pair.rejected_risk[label] for pair in ordered]) for label in labels}
    chosen = column["chosen_logp"] - column["chosen_ref_logp"]
    rejected = column["rejected_logp"] - column["rejected_ref_logp"]
    tops = {
        "reward_accuracy": (chosen > rejected).astype(np.float64),
        "chosen_logp_change": chosen,
        "rejected_logp_change": rejected,
        **{f"chosen_risk {label}": values for label, values in chosen_risk.items()},
        **{f"rejected_risk {label}": values for label, values in rejected_risk.items()},
    }
    if sequential:
        with_risk = chosen + chosen_risk[risk_label], rejected + rejected_risk[risk_label]
        tops["implicit_reward_accuracy"] = (with_risk[0] > with_risk[1]).astype(np.float64)
    bottoms = dict.fromkeys(tops, np.ones(len(ordered)))
    for name, (top, bottom) in _bits(column).items():
        tops[name], bottoms[name] = top, bottom

    codes = np.unique([pair.group for pair in ordered], return_inverse=True)[1]
    figures = _by_group(tops, bottoms, codes, resamples)

    def figure(name: str) -> dict[str, float | None] | None:
        return figures[name].as_dict() if name in figures else None

    return {
        "num_pairs": len(ordered),
        "num_groups": int(codes.max()) + 1,
        "risk_label": risk_label,
        **{name: figure(name) for name in ("reward_accuracy", "implicit_reward_accuracy")},
        **{name: figure(name) for name in ("chosen_logp_change", "rejected_logp_change")},
        "chosen_risk": {label: figure(f"chosen_risk {label}") for label in labels},
        "rejected_risk": {label: figure(f"rejected_risk {label}") for label in labels},
        **{name: {side: figure(f"{name} {side}") for side in ("reference", "policy", "difference")} for name in BITS},
        "bits_per_byte_relative_change": figure("bits_per_byte relative"),
    }


def _bits(column: dict[str, FloatArray]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Numerator and denominator, per pair, of every bits-per-byte figure."""
    both = {
        "bits_per_byte_chosen": (column["chosen_ref_logp"], column["chosen_logp"], column["chosen_bytes"]),
        "bits_per_byte_rejected": (column["rejected_ref_logp"], column["rejected_logp"], column["rejected_bytes"]),
    }
    first, second = both.values()
    both["bits_per_byte"] = (first[0] + second[0], first[1] + second[1], first[2] + second[2])
    parts = {}
    for name, (of_reference, of_policy, size) in both.items():
        reference, policy = -of_reference / math.log(2), -of_policy / math.log(2)
        parts[f"{name} reference"] = reference, size
        parts[f"{name} policy"] = policy, size
        parts[f"{name} difference"] = policy - reference, size
        parts[f"{name} relative"] = policy - reference, reference
    return parts


def _by_group(
    tops: dict[str, FloatArray], bottoms: dict[str, FloatArray], codes: IndexArray, resamples: int
) -> dict[str, Estimate]:
    def sums(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(codes, weights=values), dtype=np.float64)

    return ratio_estimates(
        {name: sums(values) for name, values in tops.items()},
        {name: sums(values) for name, values in bottoms.items()},
        resamples=resamples,
    )


def _check(pairs: list[PairScores], needed_label: str | None) -> list[str]:
    """The risk labels, the same on every pair; every number finite."""
    labels = sorted(pairs[0].chosen_risk)
    for pair in pairs:
        if sorted(pair.chosen_risk) != labels or sorted(pair.rejected_risk) != labels:
            raise EvaluationError(
                f"held-out pair {pair.row_id}: its risks are {sorted(pair.chosen_risk)} on chosen and "
                f"{sorted(pair.rejected_risk)} on rejected, other pairs have {labels}: "
                "score all pairs with the same measures"
            )
        numbers = {name: getattr(pair, name) for name in NUMBERS}
        numbers |= {f"chosen_risk {label}": value for label, value in pair.chosen_risk.items()}
        numbers |= {f"rejected_risk {label}": value for label, value in pair.rejected_risk.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise EvaluationError(
                    f"held-out pair {pair.row_id}: {name} is {value}, so no figure over the pairs is defined; "
                    "training has probably diverged: lower train.optim.lr or raise loss.beta"
                )
    if needed_label is not None and needed_label not in labels:
        raise EvaluationError(
            f"the held-out pairs hold no risk under the trained measure {needed_label!r}, only {labels}: "
            "score the pairs with the measure of the run"
        )
    return labels
