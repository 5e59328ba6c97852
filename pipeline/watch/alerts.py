"""Alerts: one document each, created exclusively and never written again, below ``watch/<line>/alerts``.

Their names sort by baseline and output, and are the same when a watch that was killed comes to the same alarm again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.storage import Storage

DIRECTORY = "watch"
"""Below the storage."""
ROLL_BACK_LATER = "roll-back"
"""The rule of an alert that tells that a roll-back which had failed was done later."""


@dataclass(frozen=True)
class Alert:
    """What was found, and what was done about it."""

    id: str
    when: str
    """UTC, ISO 8601: when the watch found it."""
    line: str
    alias: str | None
    """What was watched; None for a version by its number."""
    version: int
    rule: str
    message: str
    figures: Mapping[str, Any]
    """Of an alarm: statistic, threshold, outputs since the baseline, means, and which output it was."""
    action: str
    """What was done: ``none``, ``rolled back``, ``failed``, or ``moved already``."""
    action_message: str
    record: int | None = None
    """Number of the roll-back's record in the audit trail."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def alert_id(target: str, epoch: int, output: int, rule: str) -> str:
    """The name of an alert.

    Args:
        target: what is watched: an alias, or ``version-3``.
        epoch: number of the baseline.
        output: outputs after it.
    """
    return f"{target}-{epoch:06d}-{output:010d}-{re.sub('[^a-z0-9]+', '-', rule.lower()).strip('-')}"


def place_of(storage: Storage, line: str) -> Place:
    """Where a line's alerts are."""
    return storage.place(DIRECTORY, line, "alerts")


def create(place: Place, alert: Alert) -> bool:
    """Write an alert down; false when it was there already."""
    return place.create(f"{alert.id}.json", seal(alert.as_dict()))


def read_alerts(storage: Storage, line: str) -> list[Alert]:
    """All alerts of a line, oldest first.

    Raises:
        ArtifactError: when one was damaged.
    """
    place = place_of(storage, line)
    found = [read(place, name) for name in place.names() if name.endswith(".json")]
    return sorted(found, key=lambda one: (one.when, one.id))


def read(place: Place, name: str) -> Alert:
    """One alert. Raises as `read_alerts`."""
    try:
        value = unseal(place.read(name))
        return Alert(**{one.name: value[one.name] for one in fields(Alert)})
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"the alert {name} in {place.root} is damaged: {error}; restore it from a copy") from error
