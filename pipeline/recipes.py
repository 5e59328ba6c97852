"""From a recipe and overrides to one validated `RunConfig`.

A recipe is a YAML file with the shape of `RunConfig`; overrides are dotted (``risk.level``) and lie on top
of it. The whole run is validated once, after the overrides, so that a combination is judged only in its
final form. Every fault is reported at once, one line each, with the dotted name of the option and the
place that set it. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.realign_config import RealignConfig
from pipeline.sweep_config import SweepConfig

ONE_JOB_ONLY: Mapping[str, BaseModel] = MappingProxyType({"sweep": SweepConfig(), "realign": RealignConfig()})
"""Sections that are left out of a resolved run when nothing of them is set."""

RECIPES = Path(__file__).resolve().parent.parent / "jobs" / "recipes"
"""Where recipes are found by name: ``jobs/recipes`` beside the package."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as read, before validation: nested ``values`` and, for messages, the line of each option."""

    name: str
    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """The file of a recipe: a name in ``jobs/recipes``, or the path of a YAML file.

    Raises `ConfigError` naming the nearest recipe when there is no such file.
    """
    named = RECIPES / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise ConfigError(f"--recipe: there is no file {name_or_path}")
    raise ConfigError(
        f"--recipe: there is no recipe {name_or_path!r}{_did_you_mean(name_or_path, recipe_names())}; "
        f"{RECIPES} has {', '.join(recipe_names()) or 'none'}, or give the path of a YAML file"
    )


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe and refuse keys that are no options.

    Raises `ConfigError` for a missing file, bad YAML (with line and column), a key given twice, a section
    that is no mapping, and an unknown key (naming the nearest option).
    """
    path = recipe_path(name_or_path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        lines = dict(_key_lines(root, str(path)))
        values = yaml.SafeLoader("").construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {error.problem or error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from error
    problems = list(_unknown_keys(RunConfig, values, "", lines, path))
    if problems:
        raise ConfigError("\n".join(problems))
    return Recipe(name_or_path, path, _without_empty_sections(RunConfig, values), lines)


def resolve(recipe: Recipe, overrides: Mapping[str, Any]) -> RunConfig:
    """Validate the recipe with dotted ``overrides`` on top, once, as a whole.

    Raises `ConfigError` with one line per problem.
    """
    # A missing required section is left to its missing options, whose names can be given as flags.
    values: dict[str, Any] = {name: {} for name, info in RunConfig.model_fields.items() if info.is_required()}
    values |= _copy(recipe.values)
    for dotted, value in overrides.items():
        *sections, leaf = dotted.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        places = {dotted: f"{recipe.path.name}, line {line}" for dotted, line in recipe.lines.items()}
        places |= {dotted: f"--{dotted}" for dotted in overrides}
        raise ConfigError("\n".join(described(problem, places) for problem in error.errors())) from error


def resolved_yaml(run: RunConfig) -> str:
    """The run with every default filled in, as YAML that is itself a recipe for the same run."""
    none = {name for name, section in ONE_JOB_ONLY.items() if getattr(run, name) == section}
    values = run.model_dump(mode="json", exclude=none)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Text with one of Unicode's own line breaks is quoted: bare, YAML would fold it into a space."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def options(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every option that can be set, by dotted name, in the order of the configuration file."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None:
            found[prefix + name] = info
        else:
            found |= options(section, f"{prefix}{name}.")
    return found


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a nested section of options, or None for an option."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def nearest_option(dotted: str) -> str | None:
    """The option most like ``dotted``: a slip anywhere, or the right last part in a wrong section."""
    names = list(options())
    if almost := difflib.get_close_matches(dotted, names, n=1, cutoff=0.9):
        return almost[0]
    leaf = dotted.rsplit(".", 1)[-1]
    by_leaf = difflib.get_close_matches(leaf, [name.rsplit(".", 1)[-1] for name in names], n=1, cutoff=0.75)
    same_leaf = [name for name in names if by_leaf and name.rsplit(".", 1)[-1] == by_leaf[0]]
    close = difflib.get_close_matches(dotted, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.6)
    return close[0] if close else None


def _key_lines(node: yaml.Node | None, file: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Dotted key and 1-based line of every key below ``node``; a key given twice is an error."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            raise ConfigError(f"{file}, line {line}: {prefix}{key.value} is already set in line {seen[key.value]}")
        seen[key.value] = line
        yield f"{prefix}{key.value}", line
        yield from _key_lines(value, file, f"{prefix}{key.value}.")


def _unknown_keys(
    model: type[BaseModel], values: Any, prefix: str, lines: Mapping[str, int], path: Path
) -> Iterator[str]:
    if values is None:
        return
    if not isinstance(values, dict):
        where = f"{path}, line {lines[prefix[:-1]]}" if prefix[:-1] in lines else str(path)
        yield f"{where}: {prefix[:-1] or 'the recipe'} must be a section of options, got {values!r}"
        return
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        info = model.model_fields.get(key)
        if info is None:
            sections = [name for name, known in RunConfig.model_fields.items() if section_of(known)]
            hint = _did_you_mean(dotted, sections) if isinstance(value, dict) and not prefix else ""
            nearest = nearest_option(dotted)
            hint = hint or (f", did you mean {nearest}?" if nearest else "")
            yield f"{path}, line {lines.get(dotted, '?')}: unknown option {dotted}{hint}"
        elif (section := section_of(info)) is not None:
            yield from _unknown_keys(section, value, f"{dotted}.", lines, path)


def _without_empty_sections(model: type[BaseModel], values: Any) -> dict[str, Any]:
    """A section whose lines are all commented out reads as None; it means 'nothing set here'."""
    cleaned: dict[str, Any] = {}
    for key, value in (values or {}).items():
        section = section_of(model.model_fields[key])
        cleaned[key] = value if section is None else _without_empty_sections(section, value)
    return cleaned


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in values.items()}


def described(problem: Any, places: Mapping[str, str] = MappingProxyType({})) -> str:
    """One pydantic error as one line: option, problem, what it got, and what set it."""
    if problem["type"] == "value_error":
        # Checks over several options name them in their own message (pipeline.config).
        return str(problem["ctx"]["error"])
    if tuple(problem["loc"][:2]) == ("sweep", "space") and len(problem["loc"]) > 3:
        # An option named by another one: place in the list, the option itself, which kind of values, the part of it.
        _, _, _, name, *rest = problem["loc"]
        part = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in rest[1:])
        return f"sweep.space: {name}{part}: {problem['msg']}, got {problem['input']!r}"
    parts = [part for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    option = dotted.split("[")[0]
    if problem["type"] == "missing":
        return f"{dotted}: must be set, in the recipe or as --{dotted}"
    place = f" ({places[option]})" if option in places else ""
    return f"{dotted}: {_expected(problem, option)}, got {problem['input']!r}{place}"


def _expected(problem: Any, option: str) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "literal_error":
            choices = [str(choice) for choice in get_args(options()[option].annotation)]
            got = problem["input"]
            hint = difflib.get_close_matches(got, choices, n=1) if isinstance(got, str) else []
            return f"must be one of {', '.join(choices)}" + (f" (did you mean {hint[0]}?)" if hint else "")
        case "greater_than":
            return f"must be above {context['gt']:g}"
        case "greater_than_equal":
            return f"must be {context['ge']:g} or more"
        case "less_than":
            return f"must be below {context['lt']:g}"
        case "less_than_equal":
            return f"must be {context['le']:g} or less"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be text"
        case "tuple_type":
            return "must be a list"
        case _:
            return str(problem["msg"])


def _did_you_mean(wrong: str, names: list[str]) -> str:
    close = difflib.get_close_matches(wrong, names, n=1)
    return f", did you mean {close[0]}?" if close else ""
