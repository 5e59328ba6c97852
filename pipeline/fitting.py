"""The room there is for what a run writes, and its refusal when that is clearly too little. Nothing is written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.checkpoints.location import held_bytes, run_directory
from pipeline.config import RunConfig
from pipeline.disk import existing
from pipeline.errors import ArtifactError
from pipeline.graph import PlannedStage
from pipeline.places import Place
from pipeline.plan import TokenCounts, cost
from pipeline.room import Room, refusal
from pipeline.storage import Storage
from pipeline.survey import model_shape


def find_room(run: RunConfig, storage: Storage) -> Room:
    """What is free where the run writes: at the storage and where its reference cache is kept.

    Raises:
        ArtifactError: when ``reference.root`` is a directory that cannot be written, or cannot be reached.
    """
    at = existing(storage.here)
    free = shutil.disk_usage(at).free
    if run.reference.root is None and not storage.is_local:
        return Room(str(storage.here), free, storage.at("references"), None, shared=False, scratch=True)
    if run.reference.root is None:
        return Room(str(storage.here), free, storage.at("references"), free, shared=True)
    place = Place(run.reference.root)
    if not place.is_local:
        place.names()  # one that cannot be reached is found now, not after fine-tuning
        return Room(str(storage.here), free, place.root, None, shared=False, scratch=not storage.is_local)
    root = existing(Path(place.root))
    problem = errno.ENOTDIR if not root.is_dir() else 0 if os.access(root, os.W_OK | os.X_OK) else errno.EACCES
    if problem:
        raise ArtifactError(
            f"reference.root {place.root} cannot be written: {os.strerror(problem)}; "
            "set --reference.root to a directory you may write"
        )
    shared = root.stat().st_dev == at.stat().st_dev
    return Room(str(storage.here), free, place.root, place.free_bytes(), shared, scratch=not storage.is_local)


def checkpoints_there_bytes(storage: Storage, planned: Mapping[str, PlannedStage], to_do: Collection[str]) -> int:
    """What killed trainings that are still to do have left in their directories: they go on from it."""
    if not storage.is_local:
        return 0  # they take none of this node's disk
    trainings = [stage for stage in ("sft", "align") if stage in to_do]
    return sum(held_bytes(Path(run_directory(storage.root, stage, planned[stage].key))) for stage in trainings)


def require_room(
    run: RunConfig,
    planned: Mapping[str, PlannedStage],
    store: Store,
    storage: Storage,
    counts: TokenCounts | None,
    model: Path | None,
    *,
    reference_there_bytes: int = 0,
) -> None:
    """Refuse a run that cannot fit, before it spends anything.

    Args:
        counts: exact ones; None while there are none, and then only the models are judged.
        model: directory of the base model, None while the job has still to build it.
        reference_there_bytes: what is there already of the run's reference cache.

    Raises:
        ArtifactError: naming what is free, what is needed, and the tiers of the reference that would fit.
    """
    to_do = [name for name, item in planned.items() if not store.exists(name, item.key)]
    shape = model_shape(run.model, model)
    costs = cost(
        run,
        counts,
        shape,
        to_do,
        reference_there_bytes=reference_there_bytes,
        checkpoints_there_bytes=checkpoints_there_bytes(storage, planned, to_do),
    )
    problem = refusal(costs, run, find_room(run, storage))
    if problem:
        raise ArtifactError(problem)
