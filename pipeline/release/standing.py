"""What a run meets in the registry: its reference's line, and what it has to be compared with there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.release.line import Line
from pipeline.release.manifest import Manifest
from pipeline.release.registry import open_registry
from pipeline.release.trail import Record

_LOOK_BACK = 200
"""Records among which a decision on the same evaluation is looked for; an older one is made again."""


@dataclass(frozen=True)
class Standing:
    """Where a run's policy will be registered, and what is in production there."""

    root: str
    line: str
    alias: str
    incumbent: Manifest | None
    """What the alias points to; None when that is the reference, or there is no line yet."""
    seen: int
    """Number of the record that moved the alias there."""

    @property
    def options(self) -> dict[str, Any]:
        """For the keys of stages."""
        return {"root": self.root, "line": self.line, "alias": self.alias}


def standing(root: str, line: str, alias: str, run: str, policy: str, *, act: bool) -> Standing:
    """What a run meets.

    A run that was judged already, under the same policy, meets what it met then, so that running it again changes
    nothing.

    Args:
        run: key of the run's evaluation.
        policy: digest of the gate's options.
        act: whether the decision is to move the alias.

    Raises:
        RegistryError: when the line's trail was changed or is gone, or its incumbent has no manifest.
    """
    registry = open_registry(root)
    if line not in registry.lines():
        return Standing(root, line, alias, None, 0)
    there = registry.line(line)
    if record := decision_on(there, alias, run, policy, act=act):
        version, seen = record.details["incumbent"], record.details["seen"]
    else:
        current = there.alias(alias)
        version, seen = current.version, current.moved_by
    return Standing(root, line, alias, there.versions.manifest(version) if version else None, seen)


def decision_on(line: Line, alias: str, run: str, policy: str, *, act: bool) -> Record | None:
    """The newest decision on an evaluation under a policy, if there is one.

    Args:
        act: leave out a decision that was only written down and would have moved the alias.
    """
    wanted: Mapping[str, Any] = {"run": run, "policy": policy, "alias": alias}
    for number in reversed(line.trail.numbers()[-_LOOK_BACK:]):
        record = line.trail.read(number)
        if record.event.kind != "decided" or not wanted.items() <= record.details.items():
            continue
        if not act or record.details["acted"] or record.details["gate"]["outcome"] == "hold":
            return record
    return None
