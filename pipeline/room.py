"""Whether a run fits where its bytes go, and what to change when it does not. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.plan import Cost, Work
from pipeline.surroundings import SCRATCH
from pipeline.tiers import KINDS, choosing, chosen_kind, is_upper_bound, loss_name, serves
from pipeline.units import bytes_text

_ESTIMATE_MARGIN = 1.2
"""An estimate refuses a run only when it exceeds the free space by this factor."""


@dataclass(frozen=True)
class Room:
    """The two places that a run writes to, and what is free there in bytes; None where nobody knows."""

    storage: str
    storage_free: int | None
    references: str
    """Where reference caches are kept: ``reference.root``, or a directory below the storage."""
    references_free: int | None
    shared: bool
    """Both are on one file system, so that what one takes the other lacks."""
    scratch: bool = False
    """The runs are kept at a URL, and ``storage`` is where this node keeps its copies."""


@dataclass(frozen=True)
class _Demand:
    """What a run writes to one place."""

    where: str
    option: str
    free: int
    models: int
    checkpoints: int
    """Of the training under way, at most at one time."""
    reference: int
    """The least that the reference cache can take there."""

    @property
    def fixed(self) -> int:
        """What no other tier changes."""
        return self.models + self.checkpoints

    @property
    def total(self) -> int:
        return self.fixed + self.reference


def refusal(costs: Cost, run: RunConfig, room: Room) -> str | None:
    """Why the run cannot fit and what to do, or None when it can (or nobody knows).

    Only what is clear refuses: exact bytes beyond the free ones, or an estimate beyond them by a fifth. The
    message names every other tier that fits and serves the run's loss, with the options that choose it.
    """
    for demand in _demands(costs, run, room):
        if demand.total > demand.free * (1 if costs.exact else _ESTIMATE_MARGIN):
            return _explain(demand, costs, run)
    return None


def _demands(costs: Cost, run: RunConfig, room: Room) -> list[_Demand]:
    models, checkpoints = costs.models_to_write_bytes, costs.checkpoints_to_write_bytes
    reference, storage, own = costs.reference_to_write_least_bytes, f"storage {room.storage}", "--storage"
    if room.scratch:  # the nodes that train are asked about their checkpoints when it comes to that
        storage, own, checkpoints = f"the scratch directory {room.storage}", SCRATCH, 0
    if room.shared:
        option = "--storage" if run.reference.root is None else "--storage or --reference.root"
        places = [(storage, option, room.storage_free, models, checkpoints, reference)]
    else:
        places = [
            (storage, own, room.storage_free, models, checkpoints, 0),
            (f"reference.root {room.references}", "--reference.root", room.references_free, 0, 0, reference),
        ]
    return [_Demand(where, option, free, *parts) for where, option, free, *parts in places if free is not None]


def _explain(demand: _Demand, costs: Cost, run: RunConfig) -> str:
    about = "" if costs.exact else "about "
    if demand.reference and is_upper_bound(chosen_kind(run.reference), run.reference):
        about = "at least "
    parts = {
        "reference cache": demand.reference,
        "models": demand.models,
        "checkpoints while training": demand.checkpoints,
    }
    listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items() if size)
    remedies = ["free some space", f"set {demand.option} to another disk"]
    ending = ""
    spared = min(demand.checkpoints, (run.checkpoint.keep - 1) * costs.checkpoint_bytes)
    if spared and demand.total - spared <= demand.free:
        remedies.append("lower --checkpoint.keep")
    # Where the models and checkpoints alone are too large, a smaller reference would not help.
    if demand.reference and demand.fixed <= demand.free and costs.work is not None:
        remedies.append("lower --data.max_train_pairs")
        fitting = _fitting_tiers(demand, costs.work, run)
        if fitting:
            remedies.append(f"choose a tier that fits: {' or '.join(fitting)}")
        else:
            ending = f"; no other tier that serves {loss_name(run)} fits there"
    return (
        f"{demand.where} has {bytes_text(demand.free)} free, but the run would write {about}"
        f"{bytes_text(demand.total)} ({listed}): {', '.join(remedies[:-1])}, or {remedies[-1]}{ending}"
    )


def _fitting_tiers(demand: _Demand, work: Work, run: RunConfig) -> list[str]:
    """The options that choose each other tier that fits and serves the loss, with its bytes."""
    return [
        f"`{choosing(kind, run.reference)}` (needs about {bytes_text(work.reference_bytes[kind])})"
        for kind in KINDS
        if kind != chosen_kind(run.reference)
        and serves(kind, run)
        and demand.fixed + work.reference_bytes[kind] <= demand.free
    ]
