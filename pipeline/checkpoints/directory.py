"""The directory of one training run: what is in it, what verifies, and how it changes.

Nothing here trusts a pointer: the newest checkpoint is the one with the highest step whose every byte is the one that
its manifest names. A checkpoint appears by one rename and goes by one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.checkpoints.identity import Identity, differences
from pipeline.checkpoints.journal import as_line
from pipeline.checkpoints.layout import FORMAT, MANIFEST, METRICS, RUN, SKIPPED, StoredFile, digest_of, step_name
from pipeline.digests import seal, unseal
from pipeline.disk import NO_LOCKS, fsync, make_directory
from pipeline.errors import ArtifactError, ClusterError
from pipeline.refusals import local_refusals

_STEP = re.compile(r"step-(\d{8,})")
STAGING = ".staging"
HASHERS = 8
OPTION = "--storage"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verifies."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        step: int = self.manifest["step"]
        return step

    def rows(self) -> bytes:
        """The lines of the metrics up to here."""
        since = b"".join(as_line(row) for row in self.manifest["rows_since"])
        return (self.path / METRICS).read_bytes() + since


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used, and what is wrong with which of its files."""

    path: Path
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.name} is damaged ({'; '.join(self.faults)})"


class RunDirectory:
    """Checkpoints of one run.

    Args:
        path: need not exist yet.
        identity: of the run that wants to read or write here.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.where = str(path)
        """For messages, and for whoever wants to look."""
        self.identity = identity

    def prepare(self) -> None:
        """Make the directory, or see that it is this run's.

        Raises:
            ArtifactError: when it belongs to another run (naming the differences) or is in another version's
                format, or cannot be written.
        """
        with self.refusals("written"):
            make_directory(self.path)
            known = self.path / RUN
            if known.exists():
                with contextlib.suppress(ValueError):  # a damaged one is written again: every checkpoint has a copy
                    self._require_ours(self.path, unseal(known.read_bytes()))
                    return
            self._replace(known, seal({"format": FORMAT, "identity": dict(self.identity)}))

    @contextlib.contextmanager
    def writing(self, wait_s: float) -> Iterator[None]:
        """Be the only process that changes the directory, until the block ends or the process dies.

        Raises:
            ArtifactError: when another process still is after ``wait_s`` seconds.
        """
        lock = FileLock(self.path / ".writer.lock", poll_interval=0.1, fallback_to_soft=False)
        with self.refusals("locked"):
            try:
                lock.acquire(timeout=wait_s)
            except Timeout:
                raise held_elsewhere(self.where) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:  # there is nothing to hold then, as for `pipeline.claims`
                    raise
        try:
            with self.refusals("written"):
                shutil.rmtree(self.path / STAGING, ignore_errors=True)  # what a killed worker was writing
            yield
        finally:
            lock.release()

    # -- looking -------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of which there is a directory, verified or not, rising."""
        with self.refusals("read"):
            if not self.path.is_dir():
                return []
            names = (_STEP.fullmatch(path.name) for path in self.path.iterdir() if path.is_dir())
            return sorted(int(name[1]) for name in names if name)

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None when there is none at all; every damaged one on the way is
        named.

        Raises:
            ArtifactError: when a checkpoint is of another run or in another version's format, or when there are
                checkpoints of which none can be used: what they hold may be worth more than the time that training
                anew takes.
        """
        damaged = []
        steps = self.steps()
        for step in reversed(steps):
            found = self.verify(step)
            if isinstance(found, Checkpoint):
                for name in sorted(self._foreign(found)):
                    say(f"{found.path.name}/{name} is no part of the checkpoint and is not read")
                return found
            damaged.append(str(found))
            say(f"{self.where}: {found}; looking for an older one")
        if self.steps() != steps:  # a worker of an earlier job that still ends has committed or pruned meanwhile
            return self.newest(say)
        if damaged:
            raise ArtifactError(
                f"no checkpoint in {self.where} can be used: {'; '.join(damaged)}. Put their files back, or remove the "
                "directory to train from the start"
            )
        return None

    @staticmethod
    def _foreign(checkpoint: Checkpoint) -> set[str]:
        """Names of files that are no part of a checkpoint."""
        known = {MANIFEST, METRICS, *(one["name"] for one in checkpoint.manifest["files"])}
        return {path.name for path in checkpoint.path.iterdir()} - known

    def fetch(self, step: int) -> Checkpoint:
        """The checkpoint that the driver has verified, on a disk that this process sees; only its manifest is read
        again.

        Raises:
            ClusterError: when it has been pruned since, so that the driver looks again.
        """
        path = self.path / step_name(step)
        with self.refusals("read"):
            try:
                return Checkpoint(path, unseal((path / MANIFEST).read_bytes()))
            except FileNotFoundError:
                (self.path / RUN).stat()  # gone as a whole: that is what the user has to hear
                raise pruned(path) from None

    def verify(self, step: int) -> Checkpoint | Damage:
        """Read every byte of one checkpoint.

        Raises:
            ArtifactError: when it is of another run or in another version's format.
        """
        path = self.path / step_name(step)
        with self.refusals("read"):
            try:
                manifest = unseal((path / MANIFEST).read_bytes())
            except OSError as error:
                return Damage(path, (_unreadable(MANIFEST, error),))
            except ValueError as error:
                return Damage(path, (f"{MANIFEST}: {error}",))
            self._require_ours(path, manifest)
            if manifest["step"] != step:
                return Damage(path, (f"{MANIFEST} is that of step {manifest['step']}",))
            with ThreadPoolExecutor(HASHERS) as pool:
                stored = [*manifest["files"], manifest["metrics"]]
                checked = pool.map(lambda one: _fault(path, StoredFile(**one)), stored)
                faults = [fault for fault in checked if fault]
            return Damage(path, tuple(faults)) if faults else Checkpoint(path, manifest)

    def _require_ours(self, path: object, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{path} was written in format {manifest.get('format')!r}, this version reads {FORMAT}: use the "
                f"version that wrote it, or remove the directory to train from the start"
            )
        found = differences(manifest["identity"], self.identity)
        if found:
            raise ArtifactError(
                f"{path} belongs to another run: {'; '.join(found)}. Put its directory back where it came from, or "
                "remove it to train from the start"
            )

    # -- changing ------------------------------------------------------------------------------------------

    def staging(self, step: int) -> Path:
        """Where the files of a checkpoint are written; made by whoever comes first."""
        with self.refusals("written"):
            return self._inside(STAGING, step_name(step))

    def hand_in(self, step: int, file: StoredFile) -> None:
        """Called by who has written a file into `staging`, before the checkpoint is committed."""

    def commit(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Make a checkpoint of what lies in `staging`, whose files are safe on the disk: it appears whole or not at
        all, in place of one that is there.

        Those of later steps go. The run could not go on from them, and counted among the newest they would have the
        good ones pruned.
        """
        staging, final = self.path / STAGING / step_name(step), self.path / step_name(step)
        with self.refusals("written"):
            (self.path / RUN).stat()  # the directory that the run began in, and no other in its place
            _write_through(staging / MANIFEST, seal({"format": FORMAT, "identity": dict(self.identity), **manifest}))
            fsync(staging)
            if final.exists():
                self._remove(final)
            staging.rename(final)
            fsync(self.path)
            for later in self.steps():
                if later > step:
                    self._remove_step(later)

    def prune(self, keep: int, also_every: int | None = None) -> None:
        """Remove all but the newest ``keep`` checkpoints, and the newest one of a step divisible by ``also_every``."""
        steps = self.steps()
        kept = set(steps[-keep:])
        if also_every:
            kept.update([step for step in steps if step % also_every == 0][-1:])
        with self.refusals("written"):
            for step in steps:
                if step not in kept:
                    self._remove_step(step)

    def roll_back(self, to: Checkpoint, changes: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Make ``to`` the newest checkpoint, with ``changes`` in its manifest and ``row`` as the last of its metrics.

        A crash in between leaves a directory from which the run comes to the same decision again.
        """
        with self.refusals("written"):
            for step in reversed(self.steps()):
                if step > to.step:
                    self._remove_step(step)
            since = [*to.manifest["rows_since"], dict(row)]
            self._rewrite(to, seal({**to.manifest, **changes, "rows_since": since}))

    def note_skipped(self, step: int, record: Mapping[str, Any]) -> None:
        """Write down a batch that was left out."""
        with self.refusals("written"):
            self._inside(SKIPPED)
            self._replace(Path(self.skipped_at(step)), seal(record))

    def skipped_at(self, step: int) -> str:
        """Where `note_skipped` writes."""
        return f"{self.where}/{SKIPPED}/{step_name(step)}.json"

    def show(self, rows: bytes) -> None:
        """Let people see the metrics so far, where the journal's own file is out of their reach."""

    @contextlib.contextmanager
    def on_this_node(self) -> Iterator[None]:
        """For the length of a worker's life: what the directory needs of the node."""
        yield

    def remove(self) -> None:
        """Remove everything: the run's result is committed elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_step(self, step: int) -> None:
        self._remove(self.path / step_name(step))

    def _rewrite(self, checkpoint: Checkpoint, manifest: bytes) -> None:
        self._replace(checkpoint.path / MANIFEST, manifest)

    def _remove(self, checkpoint: Path) -> None:
        # First out of sight at once: half a directory must never look like a checkpoint.
        aside = self._inside(STAGING) / f"removed-{checkpoint.name}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _replace(self, path: Path, data: bytes) -> None:
        fresh = self._inside(STAGING) / f"{path.name}-{os.getpid()}"
        _write_through(fresh, data)
        fresh.replace(path)
        fsync(path.parent)

    def _inside(self, *parts: str) -> Path:
        """A directory below this one. This one itself is never made again: where it is gone, so is the training."""
        path = self.path
        for part in parts:
            path = path / part
            path.mkdir(exist_ok=True)
        return path

    @contextlib.contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        """Turn what the disk refuses in the block into an `ArtifactError` that says what to do."""
        message = f"checkpoints at {self.where} cannot be {what}"
        with local_refusals(message, OPTION):
            try:
                yield
            except FileNotFoundError as error:
                raise ArtifactError(
                    f"{message}: {error.filename} has disappeared (a disk that is no longer mounted, or somebody "
                    "removed it); bring it back and run the same command again"
                ) from error


def _fault(path: Path, stored: StoredFile) -> str | None:
    file = path / stored.name
    try:
        size = file.stat().st_size
        if size != stored.bytes:
            return f"{stored.name} has {size} bytes instead of {stored.bytes}"
        return None if digest_of(file) == stored.blake3 else f"{stored.name} has changed"
    except OSError as error:
        return _unreadable(stored.name, error)


def _unreadable(name: str, error: OSError) -> str:
    return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror or error}"


def held_elsewhere(where: str) -> ArtifactError:
    """Somebody else writes there."""
    return ArtifactError(
        f"{where} is being written by another process: a train worker of an earlier job still runs; end it "
        "(`ray job list`), or wait for it"
    )


def pruned(checkpoint: object) -> ClusterError:
    """What the driver has chosen went before a worker could read it."""
    return ClusterError(f"{checkpoint} is gone: a worker of an earlier job was still writing checkpoints")


def _write_through(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    fsync(path)
