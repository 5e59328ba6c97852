"""The command of a roll-back. Only what it needs is imported, so that it takes no longer than its own work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.release.line import Moved
from pipeline.release.state import PRODUCTION
from pipeline.release.trail import Record
from pipeline.release.where import Where


@dataclass(frozen=True)
class RollBack(Where):
    to: Annotated[str | None, tyro.conf.arg(metavar="reference|VERSION", help_behavior_hint="")] = None
    """Where to: the reference, or a version. Default: the version before, once: said again, it does nothing."""
    alias: str = PRODUCTION
    """What goes back."""
    why: str = "rolled back by hand"
    """The reason, for the audit trail."""


def roll_back(options: RollBack) -> int:
    """Move an alias back, and say what that did."""
    line = options.open()
    moved = line.roll_back(options.alias, options.to, why=options.why)
    print(moved_text(options.alias, moved))
    if moved.record is None:
        print("nothing was done" + ("" if options.to else "; to go further back, say --to reference or --to VERSION"))
    else:
        print(record_text(moved.record))
    return 0


def moved_text(alias: str, moved: Moved) -> str:
    """What a move did, in words."""
    if moved.before == moved.after:
        return f"{alias} points to {_version(moved.after)} already"
    return f"{alias}: {_version(moved.before)} -> {_version(moved.after)}"


def _version(number: int) -> str:
    return "version 0 (the reference)" if number == 0 else f"version {number}"


def record_text(record: Record) -> str:
    """A record by its number and digest."""
    return f"record {record.number} of the audit trail: {record.digest}"
