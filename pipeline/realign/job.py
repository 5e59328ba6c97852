"""One call of the schedule: the lease, a look, the decision, what it asks for, and the record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.cli import JobRequest
from pipeline.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from pipeline.realign.records import Records
    from pipeline.release.line import Line
    from pipeline.storage import Storage

DIRECTORY = "realign"
"""Below the storage: for every line its lease, its records, and the sets of pairs that they name."""


def realign(request: JobRequest) -> int:
    """Do what the policy asks for (with ``dry_run`` or ``--list``: only look); returns the exit code.

    Raises:
        PipelineError: when something is wrong; the record says so, too.
    """
    from pipeline.console import Console, switch_off_bars
    from pipeline.job import opened, recipe_name, storage_of

    if not request.run.registry.enabled:
        raise ConfigError("registry.enabled is false, but a schedule decides what goes into production: set it to true")
    now = moment(request.arguments["now"])
    storage = storage_of(request)
    if request.arguments["list"] is not None:
        from pipeline.realign.show import timeline

        switch_off_bars()
        found = find_line(request, storage)
        print("\n".join(timeline(found.name, found.records(storage).entries())))
        return 0
    if request.dry_run:
        from pipeline.realign.show import preview

        switch_off_bars()
        with Console() as console:
            preview(request, storage, find_line(request, storage), now, console)
        return 0
    with opened(request, storage, "realign", "re-alignment") as (store, console):
        from pipeline.realign.call import Call

        console.line(f"as of {now.isoformat(timespec='minutes')}, recipe {recipe_name(request)}")
        return Call(request, storage, store, console, now, find_line(request, storage)).run()


def moment(text: str | None) -> datetime:
    """The time that ``--now`` says, or that it is; without a zone it is UTC.

    Raises:
        ConfigError: for what is no time.
    """
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--now: {text!r} is no time; write it as 2026-11-27T06:00 (ISO 8601)") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


@dataclass(frozen=True)
class FoundLine:
    """Which line a call is about."""

    name: str
    line: Line | None
    """None before the first alignment."""
    first: bool
    """Whether the first alignment is still to be made, or to be gone on with: as the run describes it, without
    ``registry.line``."""

    def records(self, storage: Storage) -> Records:
        """What earlier calls left."""
        from pipeline.realign.records import Records

        return Records(storage.place(DIRECTORY, self.name, "records"))


def find_line(request: JobRequest, storage: Storage) -> FoundLine:
    """The line that ``registry.line`` names, or else the only one whose reference this recipe made.

    Raises:
        RegistryError: when there are several.
    """
    from pipeline.job import recipe_name
    from pipeline.release.registry import open_registry, root_of

    run, recipe = request.run, recipe_name(request)
    registry = open_registry(root_of(storage, run.registry.root))
    if run.registry.line is not None:
        line = registry.line(run.registry.line)
        return FoundLine(line.name, line, False)
    made = [one for one in registry.lines() if recipe_of(registry.line(one)) == recipe]
    if not made:
        _require_never_begun(storage, recipe, registry.place.root)
        return FoundLine(_own_line(request, storage), None, True)
    if len(made) > 1:
        listed = "\n".join(f"  {one}  {registry.description(one)}" for one in made)
        raise RegistryError(
            f"{len(made)} lines in {registry.place.root} were begun by the recipe {recipe}: choose one with "
            f"--registry.line\n{listed}"
        )
    found = FoundLine(made[0], registry.line(made[0]), False)
    from pipeline.realign.records import Memory

    begun = found.records(storage).memory() == Memory() and _own_line(request, storage) == found.name
    return FoundLine(found.name, found.line, begun)


def _require_never_begun(storage: Storage, recipe: str, root: str) -> None:
    """Refuse a registry that is not there any more: on an empty mount point another line would begin, and its
    production at the reference.

    Raises:
        RegistryError: when the records know a line of this recipe.
    """
    from pipeline.realign.records import Memory, Records

    place = storage.place(DIRECTORY)
    for name in place.folders():
        records = Records(place.below(name, "records"))
        if records.memory() != Memory() and records.recipe() == recipe:
            raise RegistryError(
                f"the registry at {root} has no line of the recipe {recipe}, though {place.root}/{name} has records of "
                f"one: mount or restore the registry, or set --registry.root to where it is; to begin anew, remove "
                f"{place.root}/{name}"
            )


def recipe_of(line: Line) -> Any:
    """The recipe that made a line's reference."""
    return line.versions.manifest(0).provenance.get("recipe")


def model_of(line: Line) -> str | None:
    """What a line's reference was made from, as its run said."""
    made_from = line.versions.manifest(0).provenance.get("model")
    return None if made_from is None else str(made_from).partition(", fine-tuned on ")[0]


def _own_line(request: JobRequest, storage: Storage) -> str:
    """The line of the reference that the run itself describes."""
    from pipeline.align import AlignmentRun
    from pipeline.job import recipe_name

    release = AlignmentRun(recipe_name(request), request.run, storage).release
    assert release is not None
    return release.standing.line
