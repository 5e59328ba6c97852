from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.recipes import RECIPES, Recipe, load_recipe, nearest_option, options, recipe_names, resolve, resolved_yaml

MINIMAL = "data: {path: pairs.jsonl}\nmodel: {path: some/model}\n"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(tmp_path: Path, text: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(load_recipe(write(tmp_path, text)), overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_a_valid_run(name: str) -> None:
    run = resolve(load_recipe(name), {})
    assert resolve(load_recipe(str(RECIPES / f"{name}.yaml")), {}) == run


@pytest.mark.parametrize("name", recipe_names())
def test_the_resolved_run_is_a_recipe_for_the_same_run(name: str, tmp_path: Path) -> None:
    run = resolve(load_recipe(name), {"risk.level": 0.123456789012345, "train.optim.lr": 1e-7})
    assert resolve(load_recipe(write(tmp_path, resolved_yaml(run))), {}) == run


@settings(deadline=None)
@given(st.floats(min_value=5e-324, max_value=1), st.floats(min_value=1e-12, max_value=1e12))
def test_numbers_survive_the_resolved_yaml_exactly(level: float, lr: float) -> None:
    run = resolve(load_recipe("reviews"), {"risk.level": level, "train.optim.lr": lr})
    values = yaml.safe_load(resolved_yaml(run))
    again = resolve(Recipe("again", Path("again.yaml"), values), {})
    assert again.risk.level == level
    assert again.train.optim.lr == lr


NUMBERS = st.floats(1e-9, 1e9)
PARTS = st.dictionaries(
    st.sampled_from(["loss.beta", "risk.level", "train.optim.lr"]),
    st.lists(st.none() | st.booleans() | st.text(max_size=5) | NUMBERS, min_size=1, max_size=3)
    | st.tuples(NUMBERS, NUMBERS, st.booleans())
    .filter(lambda ends: ends[0] < ends[1])
    .map(lambda ends: {"low": ends[0], "high": ends[1], "log": ends[2]}),
    min_size=1,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(PARTS, max_size=3))
@example([{"loss.beta": ["\x85", "a\u2028b"]}])
def test_a_sweep_survives_the_resolved_yaml_and_none_leaves_no_section(parts: list[dict[str, Any]]) -> None:
    plain = {"data": {"path": "pairs.jsonl"}, "model": {"path": "some/model"}}
    run = resolve(Recipe("made", Path("made.yaml"), plain | {"sweep": {"space": parts}}), {})
    values = yaml.safe_load(resolved_yaml(run))
    assert ("sweep" in values) == bool(parts)
    assert resolve(Recipe("again", Path("again.yaml"), values), {}) == run


def test_overrides_are_judged_together_with_the_recipe_not_before(tmp_path: Path) -> None:
    scalar = MINIMAL + "reference: {tier: scalar}\n"
    assert "loss.method" in refusal(tmp_path, scalar)
    assert resolve(load_recipe(write(tmp_path, scalar)), {"loss.method": "dpo"}).loss.method == "dpo"


def test_overrides_leave_the_recipe_alone() -> None:
    recipe = load_recipe("reviews")
    resolve(recipe, {"risk.level": 0.25, "cluster.num_workers": 1})
    assert resolve(recipe, {}).risk.level == 0.5
    assert "cluster" not in recipe.values


def test_an_empty_section_sets_nothing(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL + "risk:\n  # level: 0.1\nsft:\n  tokens: 10\n  optim:\n"))
    assert resolve(recipe, {}).risk.level == 0.5
    assert resolve(recipe, {"sft.optim.lr": 0.5}).sft.optim.lr == 0.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (MINIMAL + "risk:\n  levle: 0.5\n", ["line 4", "unknown option risk.levle", "risk.level?"]),
        (MINIMAL + "loss:\n  level: 0.5\n", ["unknown option loss.level", "risk.level?"]),
        (MINIMAL + "rsk:\n  level: 0.5\n", ["line 3", "unknown option rsk", "risk?"]),
        (MINIMAL + "batch_size: 3\n", ["unknown option batch_size", "batch_size?"]),
        (MINIMAL + "12: 3\n", ["unknown option 12"]),
        (MINIMAL + "risk: 0.5\n", ["line 3", "risk must be a section of options", "0.5"]),
        ("- data\n", ["must be a section of options"]),
        (MINIMAL + "risk: {level: 1}\nrisk: {level: 0.5}\n", ["line 4", "risk is already set in line 3"]),
        (MINIMAL + "risk:\n  level: [0.5\n", ["line 5, column 1", "not valid YAML"]),
        (MINIMAL + "risk: {level: !!python/object:os.system x}\n", ["line 3", "not valid YAML"]),
        (MINIMAL + "? [a, b]\n: 1\n", ["line 3", "not valid YAML"]),
        ("\x00", ["cannot be read as a recipe"]),
    ],
)
def test_a_faulty_recipe_is_named_with_its_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert "mine.yaml" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {path: x}\n", "model.path: must be set, in the recipe or as --model.path"),
        ("data: {}\nmodel: {path: x}\n", "data.path: must be set, in the recipe or as --data.path"),
        (MINIMAL + "risk: {level: high}\n", "risk.level: must be a number, got 'high' (mine.yaml, line 3)"),
        (MINIMAL + "train: {epochs: 0}\n", "train.epochs: must be above 0, got 0 (mine.yaml, line 3)"),
        (MINIMAL + "train: {epochs: 1.5}\n", "train.epochs: must be a whole number, got 1.5 (mine.yaml, line 3)"),
        (MINIMAL + "train: {seed: -1}\n", "train.seed: must be 0 or more, got -1 (mine.yaml, line 3)"),
        (MINIMAL + "evaluation: {seeds: [0, x]}\n", "evaluation.seeds[1]: must be a whole number, got 'x' (mine.yaml,"),
        (MINIMAL + "evaluation: {seeds: 3}\n", "evaluation.seeds: must be a list, got 3 (mine.yaml, line 3)"),
        (MINIMAL + "evaluation: {tail_fraction: 1}\n", "evaluation.tail_fraction: must be below 1, got 1"),
        (MINIMAL + "cluster: {autoscaling: maybe}\n", "cluster.autoscaling: must be true or false, got 'maybe'"),
        (MINIMAL + "loss: {method: ra_dpo3}\n", "(did you mean ra_dpo2?), got 'ra_dpo3'"),
        (MINIMAL + "wandb: {project: 3}\n", "wandb.project: must be text, got 3"),
    ],
)
def test_a_wrong_value_is_one_line_with_option_problem_value_and_place(
    tmp_path: Path, text: str, expected: str
) -> None:
    message = refusal(tmp_path, text)
    assert expected in message
    assert len(message.splitlines()) == 1


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "train: {epochs: 0}\nloss: {beta: -1}\n", **{"risk.level": "x"})
    assert [line.split(":")[0] for line in message.splitlines()] == ["loss.beta", "risk.level", "train.epochs"]
    assert "(--risk.level)" in message


def test_a_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean reviews"):
        load_recipe("review")
    with pytest.raises(ConfigError, match="there is no file"):
        load_recipe("nowhere/mine.yaml")


@pytest.mark.parametrize("name", sorted(options()))
def test_a_letter_too_many_still_finds_the_option(name: str) -> None:
    assert nearest_option(f"{name}x") == name
    if f"{name}s" not in options():
        assert nearest_option(f"{name}s") == name
