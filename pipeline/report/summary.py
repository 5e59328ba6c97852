"""summary.json: every number of a run for machines, with all times under one key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline.report.inputs import ReportInputs, Row

_TIME_KEY = re.compile(r"(^|_)(s|seconds|duration|timestamp|time|per_s|per_second)$")


def build_summary(inputs: ReportInputs) -> dict[str, Any]:
    """The content of summary.json, strict JSON: a number that is not finite becomes None.

    Everything outside the top-level keys ``timing`` and ``release`` follows from the configuration, the data and the
    seeds, so two runs of one description on one machine agree there. ``release`` is what became of the policy, which
    depends on what was in production. ``timing`` holds the seconds of every stage,
    whether it was reused, and each measured time of the other parts under its path.
    """
    parts = {
        "recipe": inputs.recipe,
        "verdict": inputs.evaluation.get("verdict"),
        "evaluation": inputs.evaluation,
        "release": None if inputs.release is None else {**inputs.release, "gate": inputs.gate},
        "data": inputs.data_stats,
        "tokens": inputs.token_stats,
        "training": {
            "steps": max((int(row["step"]) for row in inputs.metrics if "step" in row), default=0),
            "first_train": _edge(inputs.metrics, "train", 0),
            "last_train": _edge(inputs.metrics, "train", -1),
            "first_validation": _edge(inputs.metrics, "validation", 0),
            "last_validation": _edge(inputs.metrics, "validation", -1),
        },
        "sft": {
            "first": inputs.sft_metrics[0] if inputs.sft_metrics else None,
            "last": inputs.sft_metrics[-1] if inputs.sft_metrics else None,
        },
        "artifacts": {stage["name"]: stage.get("key") for stage in inputs.stages},
        "versions": inputs.versions,
        "notes": inputs.notes,
    }
    measured: dict[str, Any] = {}
    summary = {name: _without_times(strict(part), name, measured) for name, part in parts.items()}
    # The configuration is kept whole: an option such as a time limit is a choice, not a measurement.
    summary["config"] = strict(inputs.config)
    summary["timing"] = strict(
        {
            "stages": {stage["name"]: stage.get("seconds") for stage in inputs.stages},
            "total_seconds": math.fsum(stage.get("seconds") or 0.0 for stage in inputs.stages),
            "reused": [stage["name"] for stage in inputs.stages if stage.get("reused")],
            "measured": measured,
        }
    )
    return summary


def strict(value: Any) -> Any:
    """``value`` as JSON knows it: text keys, lists, None for NaN and infinities, numpy scalars unwrapped."""
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((strict(one) for one in value), key=repr)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return strict(value.tolist())
    return str(value)


def _edge(rows: list[Row], split: str, index: int) -> Row | None:
    of_split = [row for row in rows if row.get("split") == split]
    return of_split[index] if of_split else None


def _without_times(value: Any, path: str, measured: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        kept = {}
        for key, one in value.items():
            if _TIME_KEY.search(key) and not isinstance(one, (dict, list)):
                measured[f"{path}.{key}"] = one
            else:
                kept[key] = _without_times(one, f"{path}.{key}", measured)
        return kept
    if isinstance(value, list):
        return [_without_times(one, f"{path}.{index}", measured) for index, one in enumerate(value)]
    return value
