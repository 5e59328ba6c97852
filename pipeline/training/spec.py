"""The description of one training stage, as it is passed to its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TrainSpec:
    """One training stage: everything is a path or plain data, for it crosses process borders."""

    kind: Literal["sft", "align"]
    run: dict[str, Any]
    """`RunConfig` as JSON."""
    model_dir: str
    """Where the model is, as ``tokens_dir`` (`pipeline.storage.local_copy`)."""
    tokens_dir: str
    reference: str | None
    """Where the reference cache is: a directory or a URL."""
    out_dir: str
    """Where rank 0 puts the files of the artefact: a directory or a URL."""
    run_dir: str
    """Where the run's checkpoints are (`pipeline.checkpoints.layout`): a directory or a URL."""
    identity: Mapping[str, Any]
    """What the run is (`pipeline.checkpoints.identity`)."""
    wandb_dir: str
    """A directory, or a URL whose scratch on the node is meant."""
    name: str
