"""What is watched: a version and its line's reference, with what the version was judged by. No Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.config import ClusterConfig, RunConfig
from pipeline.errors import RegistryError
from pipeline.evaluation.scorers import check_scorers
from pipeline.keys import with_dtype
from pipeline.models.contents import tokenizer_contents
from pipeline.release.line import Line
from pipeline.release.manifest import Manifest
from pipeline.risk.measures import trained_measure
from pipeline.watch.rules import KL, RISK, TOKENS, Direction

_RUN = "run.yaml"
_LENGTH = "length"
"""The shipped scorer beside which a count of tokens says nothing new."""


@dataclass(frozen=True)
class Subject:
    """A version, ready to be loaded."""

    line: str
    version: int
    id: str
    """Of the version's contents."""
    model: Path
    reference: Path
    run: RunConfig
    """That the version was made by, with its dtype decided: scorers, measure of risk, lengths."""
    tokenizer: str
    """Digest of its files."""
    risk: str
    """The label of the version's own measure."""
    measures: dict[str, Direction]
    """What is watched of every output, with the direction that is bad."""

    @property
    def primary(self) -> str:
        """The score that the version was judged by."""
        return self.run.evaluation.primary_scorer


def load_subject(line: Line, version: int, into: Path, cluster: ClusterConfig) -> Subject:
    """Verify and fetch a version with its reference.

    Args:
        into: where copies go when the registry is on an object store.
        cluster: takes the place of that of the version's run.

    Raises:
        RegistryError: when there is no such version, a file differs, or nothing says how it was judged.
        EvaluationError: when one of its scorers cannot be loaded here.
    """
    fetched, reference = line.fetch(str(version), into), line.fetch("0", into)
    run = with_dtype(_run_of(line, version)).model_copy(update={"cluster": cluster})
    risk = trained_measure(run.loss, run.risk).label
    measures: dict[str, Direction] = {RISK: "up"}
    if risk != "kl":  # else they are the same numbers
        measures[KL] = "up"
    directions: dict[bool | None, Direction] = {True: "down", False: "up", None: "both"}
    scorers = check_scorers(run.evaluation)
    measures |= {name: directions[scorer.larger_is_better] for name, scorer in scorers.items()}
    if _LENGTH not in scorers:
        measures[TOKENS] = "both"
    return Subject(
        line.name,
        version,
        fetched.id,
        fetched.path,
        reference.path,
        run,
        tokenizer_contents(fetched.path),
        risk,
        measures,
    )


def _run_of(line: Line, version: int) -> RunConfig:
    """The run that a version was made by; for the reference that of the newest version there is."""
    removed = line.state().removed
    numbers = [one for one in reversed(line.versions.numbers()) if one not in removed] if version == 0 else [version]
    for number in numbers:
        manifest = line.versions.manifest(number)
        if _RUN in manifest.files:
            return _read(line, manifest)
    raise RegistryError(
        f"version {version} in {line.place.root} has no {_RUN}, which says by what it was judged"
        + (" (nor has any other version of the line)" if version == 0 else "")
        + ": only versions that jobs/align.py registered can be watched"
    )


def _read(line: Line, manifest: Manifest) -> RunConfig:
    try:
        return RunConfig.model_validate(yaml.safe_load(line.versions.directory(manifest).read(_RUN)))
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:
        raise RegistryError(
            f"{_RUN} of version {manifest.version} in {line.place.root} cannot be used: {error}; it was made by "
            "another version of this project, or is damaged"
        ) from error
