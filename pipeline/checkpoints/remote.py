"""The checkpoints of a training whose nodes share nothing but an object store.

::

    <run>/run.json               what the run is, sealed
    <run>/step-00000040.json     the manifest of a checkpoint: it is there when this is
    <run>/files/step-00000040-1a2b3c4d5e6f7081-rank-00000.safetensors
    <run>/metrics.jsonl          the metrics at the last validation, for people and for who ends trainings early
    <run>/skipped/               batches that were left out
    <run>/writer/                the lease of the rank that writes manifests

Every rank writes its file on the node's own disk, as on a directory (`pipeline.checkpoints.directory`), sends it, and
removes it; when all have, rank 0 writes the manifest. Names of files hold the digest of their content, so that two
writers never write two things under one name: the worst that a rank 0 can do that went on beside its successor is to
commit a checkpoint that verifies, or to remove one. It looks at its lease before it does either.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3
from filelock import FileLock

from pipeline.checkpoints.directory import HASHERS, STAGING, Checkpoint, Damage, RunDirectory, held_elsewhere, pruned
from pipeline.checkpoints.identity import Identity
from pipeline.checkpoints.layout import FORMAT, MANIFEST, METRICS, RUN, SKIPPED, StoredFile, step_name
from pipeline.digests import seal, unseal
from pipeline.disk import make_directory
from pipeline.errors import ArtifactError
from pipeline.lease import Lease
from pipeline.places import Place
from pipeline.refusals import STORAGE, local_refusals
from pipeline.surroundings import SCRATCH, node_scratch

_MANIFEST = re.compile(r"step-(\d{8,})\.json")
_FILE = re.compile(r"step-(\d{8,})-.*")
_STALE_S = 15.0
"""A worker that was killed holds the next one up so long."""
_CHUNK_BYTES = 8 << 20


def open_run(where: str, identity: Identity) -> RunDirectory:
    """The checkpoints of a run at a directory or a URL; nothing is created."""
    return RemoteRun(where, identity) if "://" in where else RunDirectory(Path(where), identity)


class RemoteRun(RunDirectory):
    """Checkpoints below a URL. ``path`` is a directory of this node, for what is on its way."""

    def __init__(self, where: str, identity: Identity) -> None:
        self._place = Place(where, STORAGE)
        super().__init__(node_scratch(self._place.root), identity)
        self.where = self._place.root
        self._files = self._place.below("files")
        self._lease: Lease | None = None

    def prepare(self) -> None:
        try:
            with contextlib.suppress(ValueError):  # as on a directory
                self._require_ours(self.where, unseal(self._place.read(RUN)))
                return
        except FileNotFoundError:
            pass
        self._place.write(RUN, seal({"format": FORMAT, "identity": dict(self.identity)}))

    @contextlib.contextmanager
    def on_this_node(self) -> Iterator[None]:
        with self.refusals("written"):
            make_directory(self.path)
        try:
            yield
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, wait_s: float) -> Iterator[None]:
        lease = Lease(self._place.below("writer"), stale_s=_STALE_S)
        until = time.monotonic() + wait_s
        while not lease.attempt():
            if time.monotonic() > until:
                raise held_elsewhere(self.where)
            time.sleep(_STALE_S / 30)
        with lease.held(lambda: None):
            self._lease = lease
            yield

    # -- looking -------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        found = (_MANIFEST.fullmatch(name) for name in self._place.names())
        return sorted(int(one[1]) for one in found if one)

    def verify(self, step: int) -> Checkpoint | Damage:
        path = self.path / step_name(step)
        try:
            manifest = unseal(self._place.read(f"{step_name(step)}.json"))
        except FileNotFoundError:
            return Damage(path, (f"{MANIFEST} is missing",))
        except ValueError as error:
            return Damage(path, (f"{MANIFEST}: {error}",))
        self._require_ours(f"{self.where}/{step_name(step)}", manifest)
        if manifest["step"] != step:
            return Damage(path, (f"{MANIFEST} is that of step {manifest['step']}",))
        with ThreadPoolExecutor(HASHERS) as pool:
            faults = [fault for fault in pool.map(lambda one: self._read(step, one), _stored(manifest)) if fault]
        return Damage(path, tuple(faults)) if faults else Checkpoint(path, manifest)

    @staticmethod
    def _foreign(checkpoint: Checkpoint) -> set[str]:
        return set()  # what the manifest does not name is swept

    def fetch(self, step: int) -> Checkpoint:
        """This node's copy, made once however many of its workers ask; its bytes are verified on their way."""
        path = self.path / step_name(step)
        try:
            text = self._place.read(f"{step_name(step)}.json")
        except FileNotFoundError:
            raise pruned(f"{self.where}/{step_name(step)}") from None
        manifest = unseal(text)
        with self.refusals("written"), FileLock(self.path / ".fetch.lock"):
            if not (path / MANIFEST).is_file() or (path / MANIFEST).read_bytes() != text:
                shutil.rmtree(path, ignore_errors=True)
                fresh = self._inside(STAGING, f"fetched-{path.name}")
                with ThreadPoolExecutor(HASHERS) as pool:
                    found = pool.map(lambda one: self._read(step, one, fresh / one.name), _stored(manifest))
                    faults = [fault for fault in found if fault]
                if faults:
                    raise ArtifactError(f"{self.where}: {Damage(path, tuple(faults))}; run the same command again")
                (fresh / MANIFEST).write_bytes(text)
                fresh.rename(path)
        return Checkpoint(path, manifest)

    def _read(self, step: int, stored: StoredFile, into: Path | None = None) -> str | None:
        """Read a file to its end, into another one if that is given; what is wrong with it, or None."""
        digest, size = blake3(), 0
        with contextlib.ExitStack() as stack:
            file = None if into is None else stack.enter_context(into.open("wb"))
            try:
                for chunk in self._files.chunks(_object(step, stored), _CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    if file is not None:
                        file.write(chunk)
            except FileNotFoundError:
                return f"{stored.name} is missing"
        if size != stored.bytes:
            return f"{stored.name} has {size} bytes instead of {stored.bytes}"
        return None if digest.hexdigest() == stored.blake3 else f"{stored.name} has changed"

    # -- changing ------------------------------------------------------------------------------------------

    def hand_in(self, step: int, file: StoredFile) -> None:
        self._files.publish(self.path / STAGING / step_name(step) / file.name, _object(step, file))

    def commit(self, step: int, manifest: Mapping[str, Any]) -> None:
        self._require_lease()
        if self._place.size(RUN) is None:
            raise ArtifactError(
                f"checkpoints at {self.where} cannot be written: {RUN} has disappeared (somebody removed it); run the "
                "same command again"
            )
        text = seal({"format": FORMAT, "identity": dict(self.identity), **manifest})
        self._place.write(f"{step_name(step)}.json", text)
        for later in self.steps():
            if later > step:
                self._remove_step(later)

    def prune(self, keep: int, also_every: int | None = None) -> None:
        self._require_lease()
        super().prune(keep, also_every)
        steps = self.steps()
        for name in self._files.names():
            found = _FILE.fullmatch(name)
            # Those of a later step are of a checkpoint that is being written.
            if found and int(found[1]) not in steps and int(found[1]) < max(steps, default=0):
                self._files.remove(name)

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.beat()
            if self._lease.lost:
                raise held_elsewhere(self.where)

    def note_skipped(self, step: int, record: Mapping[str, Any]) -> None:
        self._place.below(SKIPPED).write(f"{step_name(step)}.json", seal(record))

    def show(self, rows: bytes) -> None:
        with contextlib.suppress(ArtifactError):  # the checkpoints have them
            self._place.write(METRICS, rows)

    def remove(self) -> None:
        self._place.clear()
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_step(self, step: int) -> None:
        self._place.remove(f"{step_name(step)}.json")

    def _rewrite(self, checkpoint: Checkpoint, manifest: bytes) -> None:
        self._place.write(f"{step_name(checkpoint.step)}.json", manifest)

    def _inside(self, *parts: str) -> Path:
        make_directory(self.path)
        return super()._inside(*parts)

    @contextlib.contextmanager
    def refusals(self, what: str) -> Iterator[None]:
        with local_refusals(f"checkpoints on their way to {self.where} cannot be {what} in {self.path}", SCRATCH):
            yield


def _stored(manifest: Mapping[str, Any]) -> list[StoredFile]:
    """The files that a manifest names.

    Raises:
        ArtifactError: when a name is no file's: nodes write by these names, and a storage may be written by others.
    """
    found = [StoredFile(**one) for one in (*manifest["files"], manifest["metrics"])]
    for one in found:
        if "/" in one.name or "\\" in one.name or one.name in ("", ".", ".."):
            raise ArtifactError(
                f"the manifest of checkpoint {step_name(manifest['step'])} names {one.name!r}, which is no file of a "
                "checkpoint: somebody else has written it; remove the run's checkpoints"
            )
    return found


def _object(step: int, file: StoredFile) -> str:
    return f"{step_name(step)}-{file.blake3[:16]}-{file.name}"
