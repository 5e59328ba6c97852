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
from pipeline.places import Place
from pipeline.recipes import resolved_yaml
from pipeline.refusals import STORAGE
from pipeline.storage import Folder

LOG = "output.log"
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

    def __init__(self, sweep: Folder, recipe: str, number: int) -> None:
        self._shared = sweep.below("trials", f"{number:04d}")
        self.where, self.folder = self._shared.where, self._shared.path
        self.recipe = self.folder / f"{recipe}.yaml"
        self._outcome = self.folder / "outcome.json"

    @property
    def log(self) -> str:
        """Where the output of its job is."""
        return f"{self.where}/{LOG}"

    def prepare(self, run: RunConfig) -> None:
        """Write the run, for the trial's job to read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(resolved_yaml(run), encoding="utf-8")
        self._shared.send(self.recipe.name)

    def outcome(self) -> Outcome | None:
        """How the trial ended; None when it has not, or when its result is gone."""
        try:
            text = self._shared.fetch(self._outcome.name).read_text(encoding="utf-8")
            found = Outcome(**json.loads(text))
        except (OSError, ValueError, TypeError):  # never written, or torn by a kill
            return None
        return None if found.summary is not None and not is_there(found.summary) else found

    def put(self, outcome: Outcome) -> None:
        """Keep how the trial ended, as a whole."""
        write_whole(self._outcome, asdict(outcome))
        self._shared.send(self._outcome.name)

    def last_error(self) -> str:
        """What its job said last about why it failed."""
        return last_error(self._shared.fetch(LOG), self.log)


def is_there(where: str) -> bool:
    """Whether there is a file at a path or URL."""
    directory, _, name = where.rpartition("/")
    return Place(directory, STORAGE).size(name) is not None


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


def last_error(log: Path, where: str | None = None) -> str:
    """What a job said last about why it failed, from its output.

    Args:
        where: what a person finds the output by, if that is not the path.
    """
    shown = where or log
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"its output {shown} cannot be read: {error.strerror}"
    _, found, message = text.rpartition("error: ")
    return message.strip() if found else f"it ended without a word; its output is {shown}"
