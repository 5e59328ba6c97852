"""The commands of jobs/registry.py: look at versions, move an alias by hand, verify, export, explain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.errors import ArtifactError, RegistryError
from pipeline.release.line import Line
from pipeline.release.state import CANDIDATE, PRODUCTION
from pipeline.release.trail import KEY_VARIABLE
from pipeline.release.undo import moved_text, record_text
from pipeline.release.where import Where
from pipeline.units import bytes_text

_PLAIN_WIDTH = 140
"""Columns of a table in a file or a pipe, wide enough that nothing is folded."""


@dataclass(frozen=True, kw_only=True)
class List(Where):
    """Versions, where the aliases point, and what the gate said."""


@dataclass(frozen=True, kw_only=True)
class PathOf(Where):
    """Verify every byte of a version and print its directory, for a server to load."""

    version: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VERSION|ALIAS")] = "production"
    """A number, an alias, or reference."""
    into: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("versions")
    """Where it is copied to, when the registry is on an object store."""


@dataclass(frozen=True, kw_only=True)
class Promote(Where):
    """Move an alias to a version by hand."""

    version: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VERSION|ALIAS")] = "candidate"
    """A number, or an alias such as candidate."""
    expected: Annotated[str | None, tyro.conf.arg(metavar="VERSION", help_behavior_hint="")] = None
    """The version that the alias has to point to now (default: whatever it points to)."""
    alias: str = "production"
    """What is moved."""
    create: bool = False
    """Make the alias, if there is no such one yet."""
    why: str = "promoted by hand"
    """The reason, for the audit trail."""


@dataclass(frozen=True, kw_only=True)
class Verify(Where):
    """Verify the audit trail and every byte of every version; exit code 1 when anything was changed."""

    head: Annotated[str | None, tyro.conf.arg(metavar="DIGEST", help_behavior_hint="")] = None
    """A record's digest that was kept elsewhere (how it begins will do): it has to be in the trail still."""
    sizes_only: bool = False
    """Compare the sizes of versions' files, and do not read them."""


@dataclass(frozen=True, kw_only=True)
class Export(Where):
    """The audit trail as CSV or JSON."""

    form: Annotated[Literal["csv", "json"], tyro.conf.arg(name="format")] = "csv"
    """csv has a row a record, json everything."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write to this file and not to the screen."""


@dataclass(frozen=True, kw_only=True)
class Explain(Where):
    """Which tokens carried the risk in a version's worst outputs."""

    version: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VERSION|ALIAS")] = "candidate"
    """A number or an alias."""
    into: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("versions")
    """Where it is copied to, when the registry is on an object store."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write all of it to this file, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Remove(Where):
    """Give up a version's files, for their space; its records stay."""

    version: Annotated[int, tyro.conf.Positional, tyro.conf.arg(metavar="VERSION")]
    """A number; never that of the reference, or of what an alias points to."""
    why: str = "removed by hand"
    """The reason, for the audit trail."""


Command = List | PathOf | Promote | Verify | Export | Explain | Remove


def run(command: Command) -> int:
    """Do what a command says; returns the exit code."""
    match command:
        case List():
            return _list(command)
        case PathOf():
            print(command.open().fetch(command.version, command.into.absolute()).path)
            return 0
        case Promote():
            return _promote(command)
        case Verify():
            return _verify(command)
        case Export():
            return _export(command)
        case Explain():
            return _explain(command)
        case Remove():
            removed = command.open().remove(str(command.version), why=command.why)
            print(f"version {removed} was removed; its manifest and its records stay")
            return 0


def _list(command: List) -> int:
    registry = command.registry()
    console = _console()
    for name in registry.lines() if command.line is None else [registry.line(command.line).name]:
        line = registry.line(name)
        console.print(f"line {name}: {registry.description(name)}, in {registry.place.root}", soft_wrap=True)
        console.print(_versions_table(line))
    if not registry.lines():
        registry.line()  # which says what to do
    return 0


def _versions_table(line: Line) -> Table:
    state = line.state()
    decisions = _decisions(line)
    table = Table("version", "points here", "size", "registered", "made from", "gate", box=None, pad_edge=False)
    for number in range(state.versions):
        try:
            manifest = line.versions.manifest(number)
        except RegistryError:
            table.add_row(str(number), "", "damaged", "", "", "")
            continue
        names = [name for name in sorted({PRODUCTION, *state.aliases}) if state.alias(name).version == number]
        outcome = decisions.get(number, "")
        table.add_row(
            f"{number}" + (" (reference)" if number == 0 else ""),
            ", ".join(names),
            "removed" if number in state.removed else bytes_text(manifest.bytes),
            manifest.when[:16].replace("T", " "),
            str(manifest.provenance.get("method", "")),
            outcome,
        )
    return table


def _decisions(line: Line) -> dict[int | None, str]:
    """The newest decision on each version, in words."""
    found: dict[int | None, str] = {}
    for number in line.trail.numbers():
        record = line.trail.read(number)
        if record.event.kind == "decided":
            found[record.event.version] = str(record.details["gate"]["outcome"]).replace("_", " ")
    return found


def _promote(command: Promote) -> int:
    line = command.open()
    state = line.state()
    if not command.create and command.alias not in {PRODUCTION, CANDIDATE, *state.aliases}:
        raise RegistryError(f"there is no alias {command.alias!r}: correct it, or say --create to make one")
    version, current = line.number(command.version, state), state.alias(command.alias)
    expected = current.version if command.expected is None else line.number(command.expected, state)
    if version == expected == current.version:
        print(f"{command.alias} points to version {version} already; nothing was done")
        return 0
    seen = current.moved_by if command.expected is None else None
    moved = line.promote(command.alias, version, expected=expected, seen=seen, why=command.why)
    print(moved_text(command.alias, moved))
    assert moved.record is not None
    print(record_text(moved.record))
    return 0


def _verify(command: Verify) -> int:
    from pipeline.release.verify import verify

    registry = command.registry()
    line = registry.line(command.line)
    registry.description(line.name)  # raises when the line's own document was changed
    found = verify(line, head=command.head, files=not command.sizes_only)
    for finding in found.findings:
        print(f"CHANGED: {finding}")
    what = "sizes compared" if command.sizes_only else "every byte read"
    print(f"{found.records} records, {found.versions} versions ({what}) in {line.place.root}")
    if found.unchecked:
        print(f"{found.unchecked} records are signed; set {KEY_VARIABLE} to check their signatures")
    elif found.signed:
        print(
            f"{found.signed} signatures are right" if not found.findings else f"{found.signed} signatures were checked"
        )
    print(f"newest record: {found.head}")
    count = len(found.findings)
    print(f"{count} finding{'' if count == 1 else 's'}" if count else "nothing was changed")
    return 1 if found.findings else 0


def _export(command: Export) -> int:
    from pipeline.release.export import as_csv, as_json

    line = command.open()
    records = [line.trail.read(number) for number in line.trail.numbers()]
    text = as_csv(records) if command.form == "csv" else as_json(records)
    if command.output is None:
        print(text, end="")
    else:
        _write(command.output, text)
        print(f"{len(records)} records: {command.output}")
    return 0


def _explain(command: Explain) -> int:
    from pipeline.data.tables import read_table
    from pipeline.records import ScoredSample
    from pipeline.release.explain import explain

    line = command.open()
    state = line.state()
    fetched = line.fetch(command.version, command.into.absolute())
    samples = fetched.path / "evaluation" / "samples.parquet"
    if not samples.is_file():
        raise RegistryError(
            f"{fetched.label} has no outputs of its own to explain"
            + (": it is what the others are compared with" if fetched.version == 0 else "")
        )
    evaluation = json.loads((fetched.path / "evaluation" / "evaluation.json").read_text())
    scorer, fraction = evaluation["primary_scorer"], evaluation["tail_fraction"]
    found = explain(read_table(samples, ScoredSample), scorer, fraction)
    console = _console()
    console.print(
        f"{line.label(fetched.version, state)}: the worst {fraction:.0%} of outputs by {scorer} ({found.num_worst}) "
        f"hold {found.risk_worst:.2f} nats of risk each on average"
        + ("" if found.risk_others is None else f", all others {found.risk_others:.2f}")
    )
    table = Table("token", "times", "nats in all", "share", "mean here", "mean elsewhere", box=None, pad_edge=False)
    for one in found.tokens:
        elsewhere = "" if one.mean_elsewhere is None else f"{one.mean_elsewhere:.3f}"
        table.add_row(
            repr(one.text), str(one.count), f"{one.risk:.2f}", f"{one.share:.0%}", f"{one.mean:.3f}", elsewhere
        )
    console.print(table)
    for output in found.outputs:
        marked = ", ".join(f"{one.text!r} {one.risk:.2f} ({one.share:.0%})" for one in output.tokens)
        console.print(f"\n{scorer} {output.score:+.3f}, risk {output.risk:.2f} nats: {output.text!r}", soft_wrap=True)
        console.print(f"  {marked}", soft_wrap=True)
    if command.output is not None:
        _write(command.output, json.dumps(found.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        console.print(f"\nall of it: {command.output}", soft_wrap=True)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"--output: {path} cannot be written: {error.strerror}; give another file") from error


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
