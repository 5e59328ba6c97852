"""What became of the trials of a sweep, in files that outlive it.

::

    <storage>/sweeps/<recipe>-<key>/trials/0007/<recipe>.yaml   the run, a recipe of its own
                                                output.log      what its job said
                                                outcome.json    how it ended
    <storage>/sweeps/<recipe>-<key>/asked.json                  a search's settings in their order (Optuna)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.recipes import resolved_yaml

_LAST_BYTES = 20_000

State = Literal["finished", "failed", "stopped early"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    reason: str | None
    """Of a failure, or of an early end."""
    seconds: float
    """From its start to its end; after a resume those of the last part."""
    summary: str | None
    """Its summary.json, when it finished."""


class TrialFiles:
    """The files of one trial."""

    def __init__(self, sweep_dir: Path, recipe: str, number: int) -> None:
        self.folder = sweep_dir / "trials" / f"{number:04d}"
        self.recipe = self.folder / f"{recipe}.yaml"
        self.log = self.folder / "output.log"
        self._outcome = self.folder / "outcome.json"

    def prepare(self, run: RunConfig) -> None:
        """Write the run, for the trial's job to read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(resolved_yaml(run), encoding="utf-8")

    def outcome(self) -> Outcome | None:
        """How the trial ended; None when it has not, or when its result is gone."""
        try:
            found = Outcome(**json.loads(self._outcome.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # never written, or torn by a kill
            return None
        return None if found.summary is not None and not Path(found.summary).is_file() else found

    def put(self, outcome: Outcome) -> None:
        """Keep how the trial ended, as a whole."""
        write_whole(self._outcome, asdict(outcome))


def write_whole(path: Path, content: Any) -> None:
    """Write JSON, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(fresh, path)


def read_json(path: Path) -> Any:
    """What was written."""
    return json.loads(path.read_text(encoding="utf-8"))


def settled(files: Iterable[TrialFiles]) -> list[Outcome | None]:
    """Outcomes that stand; a failed trial is tried again by the next call of the same sweep."""
    found = [one.outcome() for one in files]
    return [None if outcome is None or outcome.state == "failed" else outcome for outcome in found]


def last_error(log: Path) -> str:
    """What a job said last about why it failed, from its output."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"its output {log} cannot be read: {error.strerror}"
    _, found, message = text.rpartition("error: ")
    return message.strip() if found else f"it ended without a word; its output is {log}"
