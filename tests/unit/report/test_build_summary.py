"""summary.json: strict JSON, and the same outside ``timing`` however long the run took."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.inputs import ReportInputs
from pipeline.report.summary import build_summary, strict

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats().map(np.float64),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(anything)
def test_anything_becomes_strict_json(value: object) -> None:
    text = json.dumps(strict(value), allow_nan=False)
    assert json.loads(text) == strict(value)


def test_numbers_that_are_not_finite_become_null() -> None:
    assert strict({"a": float("nan"), "b": np.float32("inf"), "c": (np.int64(3), np.array([1.5, np.nan]))}) == {
        "a": None,
        "b": None,
        "c": [3, [1.5, None]],
    }


def test_everything_but_timing_repeats(build: Callable[..., ReportInputs]) -> None:
    def run(seconds: float, reused: bool) -> dict[str, object]:
        full = build()
        return build_summary(
            replace(
                full,
                stages=[stage | {"seconds": seconds, "reused": reused} for stage in full.stages],
                metrics=[row | {"step_seconds": seconds, "pairs_per_s": 1 / seconds} for row in full.metrics],
                data_stats=full.data_stats | {"read": {"duration_s": seconds, "rows": 3}},
            )
        )

    first, second = run(1.0, False), run(2.0, True)
    assert first.pop("timing") != second.pop("timing")
    assert first == second


def test_the_numbers_of_a_run(inputs: ReportInputs) -> None:
    summary = build_summary(inputs)
    json.dumps(summary, allow_nan=False)
    assert summary["verdict"] == inputs.evaluation["verdict"]
    assert summary["evaluation"]["scorers"]["vader"]["policy"]["mean"]["value"] > 0
    assert summary["artifacts"]["align"] == "0c4e" * 16
    assert summary["training"]["steps"] == 24
    assert summary["training"]["last_validation"]["step"] == 24
    assert summary["training"]["first_train"]["step"] == 1
    assert summary["config"]["cluster"]["resource_wait_s"] == 1800.0
    assert summary["timing"]["stages"]["sft"] == 95.4
    assert summary["timing"]["reused"] == ["sft"]
    assert summary["data"]["dropped"] == {"duplicate": 56, "empty text": 1}
