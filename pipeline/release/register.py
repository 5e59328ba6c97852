"""From a judged policy to a version: its directory, its place in the line, and the record of the decision."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConflictError
from pipeline.models.source import model_files
from pipeline.release.line import Line
from pipeline.release.manifest import Manifest
from pipeline.release.standing import Standing, decision_on
from pipeline.release.trail import Record

EVALUATION = "evaluation"
"""The directory in a version that holds what it was judged by."""
EVALUATION_FILES = ("evaluation.json", "samples.parquet", "pairs.parquet")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a run's policy, as it is written down."""

    run: str
    """Key of its evaluation."""
    policy: str
    """Digest of the gate's options."""
    decision: Mapping[str, Any]
    """`pipeline.release.gate.Decision.as_dict`."""
    headline: str
    tokens: list[dict[str, Any]]
    """Those that carried the risk in the worst outputs (`pipeline.release.explain`)."""


@dataclass(frozen=True)
class Released:
    """A registered policy, and what was done with it."""

    manifest: Manifest
    record: Record
    """Of the decision."""


@contextlib.contextmanager
def version_directory(model: Path, beside: Mapping[str, Path | str], scratch: Path) -> Iterator[Path]:
    """The directory of a version: links to a model's files, and what else belongs to it.

    Args:
        model: a Hugging Face model directory, of which only the files of model and tokenizer are taken.
        beside: files by their name in the version: a path to link to, or text to write.
        scratch: a directory for the links; nothing stays there.
    """
    with tempfile.TemporaryDirectory(prefix="version-", dir=scratch) as temporary:
        directory = Path(temporary)
        for path in model_files(model):
            _link(directory / path.relative_to(model), path)
        for name, content in beside.items():
            if isinstance(content, Path):
                _link(directory / name, content)
            else:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_text(content, encoding="utf-8")
        yield directory


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


def release(
    line: Line,
    standing: Standing,
    directory: Path,
    provenance: Mapping[str, Any],
    verdict: Verdict,
    *,
    act: bool,
    fence: int | None = None,
) -> Released:
    """Register a policy, and write down, and act on, what the gate decided.

    Done again, after a kill for instance, it finds what is there and adds nothing.

    Args:
        directory: of the version (`version_directory`).
        act: move the alias as decided; otherwise that is left to a person.
        fence: the token (`pipeline.lease.Lease.number`) under which this was decided.

    Raises:
        ConflictError: when the alias has moved since the policy was compared with what it pointed to, or the lease was
            taken over. The version is registered, nothing was decided.
    """
    manifest = line.register(directory, provenance, why=f"made by {provenance['recipe']}")
    if record := decision_on(line, standing.alias, verdict.run, verdict.policy, act=act):
        return Released(manifest, record)
    incumbent = 0 if standing.incumbent is None else standing.incumbent.version
    goes_to = {"promote": manifest.version, "roll_back": 0, "hold": None}[verdict.decision["outcome"]]
    details = {
        "run": verdict.run,
        "policy": verdict.policy,
        "alias": standing.alias,
        "incumbent": incumbent,
        "seen": standing.seen,
        "acted": act,
        "digests": {
            "candidate": manifest.id,
            "incumbent": line.versions.manifest(incumbent).id,
            "reference": line.versions.manifest(0).id,
        },
        "gate": dict(verdict.decision),
        "tokens": verdict.tokens,
    }
    try:
        record = line.decide(
            standing.alias,
            manifest.version,
            goes_to if act else None,
            seen=standing.seen,
            why=verdict.headline,
            details=details,
            fence=fence,
        )
    except ConflictError as error:
        raise ConflictError(
            f"{error} (version {manifest.version} is registered, and was compared with version {incumbent}): the same "
            "command compares it with what is there now"
        ) from error
    return Released(manifest, record)


def judge_production(
    line: Line, standing: Standing, verdict: Verdict, *, act: bool, fence: int | None = None
) -> tuple[Record, bool]:
    """Write down, and act on, what the gate says of what is in production alone (`pipeline.release.gate.judge`).

    Returns:
        The record, and whether it was there already: said again, nothing is added.

    Raises:
        ConflictError: when the alias has moved since, or the lease was taken over; nothing was changed.
    """
    assert standing.incumbent is not None, "the reference in production is what everything is held against"
    if record := decision_on(line, standing.alias, verdict.run, verdict.policy, act=act):
        return record, True
    version = standing.incumbent.version
    back = verdict.decision["outcome"] == "roll_back"
    details = {
        "run": verdict.run,
        "policy": verdict.policy,
        "alias": standing.alias,
        "incumbent": version,
        "seen": standing.seen,
        "acted": act,
        "digests": {"incumbent": standing.incumbent.id, "reference": line.versions.manifest(0).id},
        "gate": dict(verdict.decision),
        "tokens": verdict.tokens,
    }
    record = line.decide(
        standing.alias,
        version,
        0 if back and act else None,
        seen=standing.seen,
        why=verdict.headline,
        details=details,
        fence=fence,
    )
    return record, False
