"""The command line of a job: a recipe, dotted options on top of it, and clear words when they are wrong.

The options are those of `RunConfig`, and their help is its docstrings: tyro draws the help and splits the
arguments, `pipeline.recipes` validates the result as a whole. Nothing heavy is imported here, so that help
and error messages are immediate.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypedDict, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config import RunConfig
from pipeline.console import current_log_path
from pipeline.errors import ConfigError, PipelineError
from pipeline.nested import flat
from pipeline.recipes import (
    Recipe,
    load_recipe,
    nearest_option,
    options,
    recipe_names,
    resolve,
    resolved_yaml,
    section_of,
)

__all__ = ["Argument", "JobRequest", "parse_job", "resolved_yaml", "run_job"]

DEFAULT_RECIPE = "reviews"

OF_ONE_JOB = {"sweep": "sweep.py", "realign": "realign.py"}
"""Sections that not every job takes, with the job that is theirs."""
PILOT_HELP = (
    "First try everything on this share of the training groups, then repeat the promising combinations (a share "
    "sweep.pilot_keep of them) on all."
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNEXPECTED = 70
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class JobRequest:
    """What the command line asked for. ``storage`` is the directory or URL of runs, None for the job's default."""

    recipe: str
    storage: str | None
    dry_run: bool
    run: RunConfig
    pilot: float | None = None
    """Of a sweep: share of the training groups to try everything on first."""
    arguments: Mapping[str, str | None] = field(default_factory=dict)
    """What was given for the job's own arguments (`Argument`), by name."""


@dataclass(frozen=True)
class Argument:
    """An argument that only one job takes: a positional one, which must be given, or an option, which is None when
    it is not. ``metavar`` is how its value is written."""

    name: str
    metavar: str
    help: str
    positional: bool = False
    flag: bool = False
    """An option without a value: "yes" when it is given."""

    @property
    def field(self) -> Any:
        """As a field of the type that tyro parses."""
        if self.positional:
            return self.name, Annotated[str, tyro.conf.Positional, _help(self.help, self.metavar, "(required)")]
        if self.flag:
            return self.name, Annotated[bool, _help(self.help, None, "")], False
        return self.name, Annotated[str | None, _help(self.help, self.metavar, "(default: none)")], None


def parse_job(
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    *,
    sweep: bool = False,
    sections: Collection[str] = (),
    own: Sequence[Argument] = (),
) -> JobRequest:
    """Parse the arguments of a job (``sys.argv[1:]`` when ``argv`` is None).

    Args:
        sweep: a sweep, which takes the section of that name, and --pilot.
        sections: those of `OF_ONE_JOB` that this job takes.
        own: arguments of this job beside the options of a run.

    Like every command line parser it ends the process itself: exit code 0 after ``--help``, 2 after one
    ``error: ...`` on stderr that names the option, the problem and the nearest valid spelling.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        taken = {*sections, *(["sweep"] if sweep else [])}
        return _parse(prog, description, arguments, sweep, _hidden(taken), own)
    except ConfigError as error:
        _print_error(f"{error}\nSee {prog} --help")
        raise SystemExit(EXIT_USAGE) from None
    except BrokenPipeError:
        # The reader of --help went away (a pager, head). Python would complain again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the process with the exit code that tells what happened.

    0: done (or what ``main`` returns); 1: a `PipelineError`, its message on stderr; 2: a `ConfigError`;
    130: interrupted; 70: an unexpected exception, with one line on stderr and its traceback in the log
    file that `pipeline.console` writes (or in a temporary file before there is one).
    """
    try:
        code = main() or 0
    except KeyboardInterrupt:
        _print_error("interrupted; the same command goes on from the last finished stage")
        code = EXIT_INTERRUPTED
    except PipelineError as error:
        # Ray wraps a worker's exception in a class that is also of its type, with the traceback as its text.
        cause = getattr(error, "cause", None)
        _keep_traceback(current_log_path())
        _print_error(str(cause if isinstance(cause, PipelineError) else error))
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except Exception as error:
        log = _keep_traceback(current_log_path()) or _keep_traceback(_temporary_log())
        first_line = next(iter(str(error).strip().splitlines()), "")
        where = f"\nThe traceback is in {log}" if log else ""
        _print_error(f"unexpected {type(error).__name__}: {first_line}{where}")
        code = EXIT_UNEXPECTED
    sys.exit(code)


def _hidden(taken: Collection[str]) -> Mapping[str, str]:
    return {name: job for name, job in OF_ONE_JOB.items() if name not in taken}


def _parse(
    prog: str,
    description: str,
    arguments: list[str],
    sweep: bool,
    hidden: Mapping[str, str],
    own: Sequence[Argument],
) -> JobRequest:
    recipe = load_recipe(_recipe_argument(arguments))
    flags = ["recipe", "storage", "dry_run", *(["pilot"] if sweep else []), *(a.name for a in own if not a.positional)]
    known = {*flags, *(name for name in options() if name.partition(".")[0] not in hidden)}
    if not {"-h", "--help"} & set(arguments):
        _refuse_unknown(arguments, known, flags)
    parsed = tyro.cli(
        _arguments_type(recipe, sweep, hidden, own),
        prog=prog,
        description=f"{description}\n\nAny option of the recipe can be set here. Defaults are those of {recipe.path}.",
        args=arguments,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    sections = {name: getattr(parsed, name) for name in RunConfig.model_fields if hasattr(parsed, name)}
    overrides = {dotted: _null(value, options()[dotted]) for dotted, value in flat(sections).items()}
    pilot = _share(parsed.pilot) if sweep else None
    given = {argument.name: _given(argument, getattr(parsed, argument.name)) for argument in own}
    return JobRequest(recipe.name, parsed.storage, parsed.dry_run, resolve(recipe, overrides), pilot, given)


def _given(argument: Argument, value: Any) -> str | None:
    if argument.flag:
        return "yes" if value else None
    return None if value is None else str(value)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (share := float(text)) < 1:
            return share
    raise ConfigError(f"--pilot: must be a share of the training groups between 0 and 1, such as 0.1, got {text!r}")


def _recipe_argument(arguments: Sequence[str]) -> str:
    """The last --recipe given: it must be known before the rest can be parsed, as it holds the defaults."""
    name = DEFAULT_RECIPE
    for position, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag == "--recipe":
            if not separator:
                value = arguments[position + 1] if position + 1 < len(arguments) else ""
            if not value or value.startswith("--"):
                raise ConfigError("--recipe: give a name or the path of a YAML file")
            name = value
    return name


def _refuse_unknown(arguments: Sequence[str], known: set[str], own: list[str]) -> None:
    """One line per option that does not exist, naming the nearest that does."""
    problems = []
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        dotted = argument[2:].partition("=")[0].replace("-", "_")
        if dotted in known:
            continue
        if dotted in options():
            job = OF_ONE_JOB[dotted.partition(".")[0]]
            problems.append(f"{argument.partition('=')[0]} belongs to {job}: leave it out here")
            continue
        close = difflib.get_close_matches(dotted, own, n=1)
        nearest = close[0].replace("dry_run", "dry-run") if close else nearest_option(dotted)
        hint = f", did you mean --{nearest}?" if nearest else ""
        problems.append(f"unknown option {argument.partition('=')[0]}{hint}")
    if problems:
        raise ConfigError("\n".join(problems))


def _arguments_type(recipe: Recipe, sweep: bool, hidden: Collection[str], own: Sequence[Argument]) -> Any:
    """The type tyro parses: the job's own arguments, then the recipe's options, each absent unless it was given.

    Values stay text here: `pipeline.recipes.resolve` validates them together with the recipe's.
    """
    recipe_help = f"A recipe by name ({', '.join(recipe_names())}), or the path of a YAML file."
    storage_help = "Directory or URL for runs and their artefacts. On a cluster every node must reach it."
    fields: list[Any] = [
        *(argument.field for argument in own),
        ("recipe", Annotated[str, _help(recipe_help, "NAME|PATH", f"(default: {DEFAULT_RECIPE})")], DEFAULT_RECIPE),
        ("storage", Annotated[str | None, _help(storage_help, "PATH|URL", "(default: chosen by the job)")], None),
        ("dry_run", Annotated[bool, _help("Print the resolved run and what it would execute.", None, "")], False),
    ]
    if sweep:
        fields.append(("pilot", Annotated[str | None, _help(PILOT_HELP, "SHARE", "(default: none)")], None))
    sections = [(name, of) for name, of in _section_types(RunConfig, recipe.values).items() if name not in hidden]
    return make_dataclass("Job", fields + sections, kw_only=True)


def _typed_dict(name: str, types: dict[str, Any]) -> Any:
    make: Any = TypedDict  # called with names known only at run time, which type checkers refuse
    return make(name, types, total=False)


def _section_types(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None:
            value = values.get(name, info.get_default(call_default_factory=True))
            note = "(required)" if name not in values and info.is_required() else f"(default: {_shown(value)})"
            many = get_origin(info.annotation) is tuple
            types[name] = Annotated[
                tuple[str, ...] if many else str, _help(info.description or "", _metavar(info.annotation), note)
            ]
        else:
            nested = _typed_dict(section.__name__, _section_types(section, values.get(name) or {}))
            types[name] = Annotated[nested, tyro.conf.arg(help=inspect.cleandoc(section.__doc__ or ""))]
    return types


def _help(text: str, metavar: str | None, default: str) -> Any:
    return tyro.conf.arg(help=" ".join(text.split()), metavar=metavar, help_behavior_hint=default)


def _metavar(annotation: Any) -> str:
    """How a value of this type is written, for the help: ``FLOAT``, ``{dpo,tdpo1}``, ``INT|none``."""
    if annotation is type(None):
        return "none"
    if get_origin(annotation) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(annotation)) + "}"
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"{_metavar(get_args(annotation)[0])} ..."
    if get_args(annotation):
        return "|".join(_metavar(part) for part in get_args(annotation))
    return {str: "TEXT", int: "INT", float: "FLOAT", bool: "{true,false}"}.get(annotation, "VALUE")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value)
    return str(value)


def _null(value: Any, info: FieldInfo) -> Any:
    """The word none (as YAML and Python spell it) for options that allow it."""
    allowed = type(None) in get_args(info.annotation)
    return None if allowed and isinstance(value, str) and value.lower() in {"none", "null"} else value


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="ra-dpo-", suffix=".log")
    os.close(handle)
    return Path(name)


def _keep_traceback(log: Path | None) -> Path | None:
    """Append the traceback to a log; None without one, or when its disk is full, which may be the error itself."""
    if log is None:
        return None
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
    except OSError:
        return None
    return log


def _print_error(message: str) -> None:
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    sys.stderr.write(f"{red}error: {message}{plain}\n")
