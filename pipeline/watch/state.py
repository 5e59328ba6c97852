"""What a watch has to remember, in one document that is replaced as a whole: with it a batch of outputs counts, or does
not.

::

    state.json                        this; the truth
    comparison/20261127-00000004.jsonl  rows of the comparison log; beyond those that the state counts they do not count
    baselines/000003.json             the values of a baseline, once it is complete
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.watch.alerts import Alert
from pipeline.watch.days import Day
from pipeline.watch.detector import Progress
from pipeline.watch.logs import Position
from pipeline.watch.ranks import Baseline

_NAME = "state.json"
_FORMAT = 1
_EXAMPLES = 3


@dataclass
class Epoch:
    """One version watched against one baseline."""

    number: int
    version: int
    id: str
    """Of the version's contents."""
    begun: str
    """UTC, ISO 8601."""
    asked: str | None
    """Why the baseline was taken anew, when a person asked for it."""
    baseline_outputs: int
    window: int
    """Outputs for which the false-alarm probability is stated."""
    false_alarms: float
    thresholds: dict[str, float] | None = None
    """By rule; None while the baseline is being taken."""


@dataclass
class Skips:
    """Rows that were not scored, for one reason."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few: file and line."""


@dataclass
class Pending:
    """An alarm whose alert is not written yet, or whose roll-back was tried in vain."""

    alert: Alert
    roll_back: bool
    told: bool = False
    """Whether its alert is written."""


@dataclass
class State:
    """Everything but the values of a complete baseline."""

    commit: int = 0
    epoch: Epoch | None = None
    gathered: dict[str, list[float]] = field(default_factory=dict)
    """The baseline so far, by measure."""
    progress: Progress = field(default_factory=Progress)
    outputs: int = 0
    """Scored, ever."""
    cut: int = 0
    anew: int = 0
    """Outputs that were cut, and that were tokenised anew since their ids were not this tokenizer's."""
    last_output: str | None = None
    """Time of the newest output."""
    skipped: dict[str, Skips] = field(default_factory=dict)
    lost_bytes: int = 0
    restarted: int = 0
    """Of log files: bytes that went away unread, and files that were written anew."""
    alarms: dict[str, int] = field(default_factory=dict)
    """By rule, ever."""
    days: dict[str, Day] = field(default_factory=dict)
    positions: tuple[Position, ...] = ()
    part: str = ""
    part_rows: int = 0
    """The newest part of the comparison log, and its rows that count."""
    pending: list[Pending] = field(default_factory=list)

    def skip(self, reason: str, where: str) -> None:
        """Count a row that was not scored."""
        skips = self.skipped.setdefault(reason, Skips())
        skips.count += 1
        if len(skips.examples) < _EXAMPLES:
            skips.examples.append(where)


def load(place: Place) -> State:
    """The state of a watch; a new one where there is none.

    Raises:
        ArtifactError: when it was damaged.
    """
    try:
        value = unseal(place.read(_NAME))
        if value.pop("format") != _FORMAT:
            raise ValueError("it was written by another version of this project")
        return _from_dict(value)
    except FileNotFoundError:
        return State()
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{place.root}/{_NAME} is damaged: {error}; restore it from a copy, or move {place.root} away to read the "
            "logs from their beginning with a new baseline"
        ) from error


def save(place: Place, state: State) -> None:
    """Commit.

    Raises:
        ArtifactError: when another watch has committed meanwhile; nothing was written.
    """
    if load(place).commit != state.commit:
        raise ArtifactError(
            f"another watch writes to {place.root}; this one ends, and what it had not committed is undone"
        )
    state.commit += 1
    place.write(_NAME, seal({"format": _FORMAT, **asdict(state)}))


def save_baseline(place: Place, epoch: Epoch, baseline: Baseline) -> None:
    """Write a complete baseline, before the state that counts on it."""
    place.below("baselines").write(f"{epoch.number:06d}.json", seal({"version": epoch.version, **baseline.as_dict()}))


def load_baseline(place: Place, epoch: Epoch) -> Baseline:
    """The baseline of an epoch.

    Raises:
        ArtifactError: when it is gone or damaged.
    """
    try:
        return Baseline.from_dict(unseal(place.below("baselines").read(f"{epoch.number:06d}.json")))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"the baseline {epoch.number} in {place.root} is gone or damaged: {error}; restore it from a copy, or give "
            "--rebaseline with a reason"
        ) from error


def _from_dict(value: Mapping[str, Any]) -> State:
    return State(
        **{
            **value,
            "epoch": value["epoch"] and Epoch(**value["epoch"]),
            "progress": Progress.from_dict(value["progress"]),
            "skipped": {name: Skips(**one) for name, one in value["skipped"].items()},
            "days": {name: Day.from_dict(one) for name, one in value["days"].items()},
            "positions": tuple(Position(**one) for one in value["positions"]),
            "pending": [Pending(**{**one, "alert": Alert(**one["alert"])}) for one in value["pending"]],
        }
    )
