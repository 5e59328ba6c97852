"""What is done about an alarm: the alias goes back where that was asked for, and the alert is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from pipeline.errors import ArtifactError, RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.watch.alerts import ROLL_BACK_LATER, Alert, create, read
from pipeline.watch.state import Pending

NONE, ROLLED_BACK, FAILED, MOVED = "none", "rolled back", "failed", "moved already"


class Teller:
    """Settles alarms, each once, however often it is tried and killed in between.

    Args:
        place: of the line's alerts.
        line: opens the line; raises where the registry is gone.
        alias: what a roll-back moves.
        to: where to; None is the version before.
    """

    def __init__(
        self,
        place: Place,
        line: Callable[[], Line],
        alias: str | None,
        to: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._place, self._line, self._alias, self._to, self._say = place, line, alias, to, say

    def settle(self, pending: Pending) -> Alert | None:
        """Do what is to be done about an alarm; returns an alert that is new.

        A roll-back that fails is told at once, and tried again whenever this is called; when it succeeds later, an
        alert of its own says so.
        """
        alert = pending.alert
        written = self._written(alert)
        action, message, record = self._roll_back(alert) if pending.roll_back else (NONE, "", None)
        pending.roll_back = action == FAILED
        if written is not None and (action == FAILED or written.action != FAILED):
            # Tried in vain again; or written down by a watch that was killed before it could commit that.
            again, pending.told = not pending.told, True
            return written if again else None
        told = replace(alert, action=action, action_message=message, record=record)
        if written is not None:
            told = replace(
                told,
                id=f"{alert.id}-{ROLL_BACK_LATER}",
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                rule=ROLL_BACK_LATER,
                message=f"what alert {alert.id} asked for and could not be done then: {message}",
            )
        if message:
            self._say(f"{alert.rule}: {message}")
        create(self._place, told)
        pending.told = True
        return told

    def send(self, outbox: Place, alert: Alert) -> None:
        """Put an alert where the webhook takes it from."""
        outbox.write(f"{alert.id}.json", json.dumps(alert.as_dict(), ensure_ascii=False, allow_nan=False).encode())

    def _written(self, alert: Alert) -> Alert | None:
        name = f"{alert.id}.json"
        return None if self._place.size(name) is None else read(self._place, name)

    def _roll_back(self, alert: Alert) -> tuple[str, str, int | None]:
        alias = self._alias
        assert alias is not None
        try:
            line = self._line()
            now = line.state().alias(alias)
            if now.version != alert.version:
                by = line.trail.read(now.moved_by)
                if alert.id in by.why:  # this watch did it, and was killed before it could say so
                    return ROLLED_BACK, f"{alias} went back to version {now.version} (record {by.number})", by.number
                return MOVED, f"{alias} pointed to version {now.version} already (record {by.number})", None
            moved = line.roll_back(alias, self._to, why=f"alert {alert.id}: {alert.message}")
        except (ArtifactError, RegistryError) as error:
            return FAILED, f"{alias} could not be moved back: {error}", None
        if moved.record is None:
            what = f"{alias} was rolled back to version {moved.after} before: there is nothing further back to go to"
            return NONE, f"{what} unless --roll_back_to names it", None
        return (
            ROLLED_BACK,
            f"{alias} went back from version {moved.before} to version {moved.after} (record {moved.record.number})",
            moved.record.number,
        )
