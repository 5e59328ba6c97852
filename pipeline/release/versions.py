"""One version: a Hugging Face model directory whose every byte is known by its manifest.

Files lie in ``models/<id>/``, named by their content, so that two writers of the same version write the same bytes. The
manifest ``versions/00000003.json`` is created exclusively and last: with it the version is there, whole, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.digests import digest_file
from pipeline.disk import fsync, make_directory, scratch_in
from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.refusals import STORAGE
from pipeline.release.manifest import FileEntry, Manifest, parse_manifest
from pipeline.release.trail import name_of
from pipeline.units import bytes_text


class Versions:
    """The versions of one line.

    Args:
        place: the line's directory.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._manifests, self._models = place.below("versions"), place.below("models")

    def numbers(self) -> list[int]:
        """Versions that have a manifest, in order; what does not look like one is left out."""
        return sorted(int(name[:-5]) for name in self._manifests.names() if re.fullmatch(r"\d{8}\.json", name))

    def names(self) -> list[str]:
        """Files in the directory of manifests."""
        return self._manifests.names()

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version.

        Raises:
            RegistryError: when there is none, or it is damaged.
        """
        try:
            manifest = parse_manifest(self._manifests.read(name_of(version)))
        except FileNotFoundError as error:
            raise RegistryError(f"there is no version {version} in {self._place.root}") from error
        except ValueError as error:
            raise RegistryError(
                f"the manifest of version {version} in {self._place.root} is damaged: {error}; restore it from a copy"
            ) from error
        if manifest.version != version:
            raise RegistryError(
                f"the manifest of version {version} in {self._place.root} says that it is version {manifest.version}"
            )
        return manifest

    def directory(self, manifest: Manifest) -> Place:
        """Where the files of a version are."""
        return self._models.below(manifest.id)

    def create(self, version: int, data: bytes) -> bool:
        """Create a manifest; false when somebody else has taken the number."""
        return self._manifests.create(name_of(version), data)

    # -- files ---------------------------------------------------------------------------------------------

    def put(self, source: Path, id: str, files: Mapping[str, FileEntry]) -> None:
        """Copy a version's files to where its manifest will look for them, and read every byte back.

        Args:
            id: of the version (`id_of`).

        Raises:
            ArtifactError: when the place cannot be written.
            RegistryError: when what was read back differs from what was to be written.
        """
        target = self._models.below(id)
        if self._models.is_local:
            self._put_locally(source, files, Path(target.root))
        else:
            for name in files:
                place, base = _inside(target, name)
                with place.scratch() as scratch:
                    place.publish(_copy(source / name, scratch / base), base)
        if damaged := next(self.damage(target, files), None):
            raise RegistryError(f"{target.root} could not be written: {damaged}; try again")

    def _put_locally(self, source: Path, files: Mapping[str, FileEntry], target: Path) -> None:
        with self._models.scratch() as scratch:
            fresh = scratch / target.name
            for name in files:
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(source / name, fresh / name)
                fsync(fresh / name)
            for directory in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
                fsync(directory)
            if target.is_dir():  # of a version that is registered again, or of a writer that was killed
                if next(self.damage(self._models.below(target.name), files), None) is None:
                    return
                target.rename(scratch / "damaged")
            try:
                fresh.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                # Somebody else has just put the same content there; the caller looks whether it is whole.
        fsync(target.parent)

    def damage(self, directory: Place, files: Mapping[str, FileEntry], *, full: bool = True) -> Iterator[str]:
        """What is wrong with a version's files, one sentence each.

        Args:
            full: read and hash every byte, and not only look at the sizes.
        """
        for name, entry in files.items():
            place, base = _inside(directory, name)
            size = place.size(base)
            if size is None:
                yield f"{name} is missing"
            elif size != entry.bytes:
                yield f"{name} has {bytes_text(size)} ({size:,} bytes) of {entry.bytes:,}"
            elif full and _digest(place, base) != entry.sha256:
                yield f"{name} differs from its digest"

    def strangers(self, manifest: Manifest) -> list[str]:
        """Files beside a version's own (on an object store, in its topmost directory: no other is ever fetched)."""
        directory = self.directory(manifest)
        if not directory.is_local:
            return sorted(set(directory.names()) - set(manifest.files))
        paths = Path(directory.root).rglob("*")
        found = {path.relative_to(directory.root).as_posix() for path in paths if path.is_symlink() or path.is_file()}
        return sorted(found - set(manifest.files))

    def require(self, version: int, *, full: bool) -> Manifest:
        """The manifest of a version whose files are there.

        Args:
            full: hash every byte; otherwise sizes are compared.

        Raises:
            RegistryError: when a file is missing or differs.
        """
        manifest = self.manifest(version)
        damaged = next(self.damage(self.directory(manifest), manifest.files, full=full), None)
        if damaged:
            raise RegistryError(
                f"version {version} in {self._place.root} is damaged or was copied by half: {damaged}; register the "
                "same model again or restore its files from a copy"
            )
        # What was left beside it by a file manager or an editor must not be in the way of a roll-back.
        if full and (strangers := self.strangers(manifest)):
            where = f"{self.directory(manifest).root}/{strangers[0]}"
            raise RegistryError(f"version {version} has a file that does not belong to it: remove {where}")
        return manifest

    def repair(self, manifest: Manifest, source: Path) -> None:
        """Make a version's damaged or missing files whole again from a directory with the same contents.

        Raises:
            RegistryError: when that does not have one of them.
        """
        directory = self.directory(manifest)
        for name, entry in manifest.files.items():
            if next(self.damage(directory, {name: entry}), None) is None:
                continue
            path = source / name
            if not path.is_file() or FileEntry(path.stat().st_size, digest_file(path)) != entry:
                raise RegistryError(
                    f"version {manifest.version} in {self._place.root} is the same model, but its {name} is damaged "
                    "and cannot be made again from this one: restore it from a copy"
                )
            place, base = _inside(directory, name)
            with self._models.scratch() as scratch:  # not in the version's own directory
                place.publish(_copy(path, scratch / base), base)

    def fetch(self, manifest: Manifest, into: Path) -> Path:
        """A verified local directory with a version's files: its own on a local place, a copy below ``into`` else.

        Raises:
            RegistryError: when a file is missing or differs.
        """
        if self._place.is_local:
            self.require(manifest.version, full=True)
            return Path(self.directory(manifest).root)
        target = into / manifest.id

        def whole() -> bool:
            return target.is_dir() and next(self.damage(Place(str(target), STORAGE), manifest.files), None) is None

        if whole():
            return target
        make_directory(into)
        source = self.directory(manifest)
        with scratch_in(into / ".scratch") as scratch:
            fresh = scratch / target.name
            for name in manifest.files:
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                place, base = _inside(source, name)
                try:
                    with (fresh / name).open("wb") as file:
                        file.writelines(place.chunks(base))
                except FileNotFoundError:
                    (fresh / name).unlink()  # `damage` says so
            if damaged := next(self.damage(Place(str(fresh), STORAGE), manifest.files), None):
                raise RegistryError(f"version {manifest.version} in {self._place.root} is damaged: {damaged}")
            if whole():  # somebody else has fetched the same meanwhile, and may be reading it
                return target
            with contextlib.suppress(FileNotFoundError):
                target.rename(scratch / "damaged")
            try:
                fresh.rename(target)
            except OSError:
                if not whole():
                    raise
        return target

    def remove_files(self, manifest: Manifest) -> None:
        """Give up the files of a version; its manifest stays."""
        for name in manifest.files:
            place, base = _inside(self.directory(manifest), name)
            place.remove(base)
        if self._place.is_local:
            shutil.rmtree(self.directory(manifest).root, ignore_errors=True)


def _inside(directory: Place, name: str) -> tuple[Place, str]:
    """The directory of a file that may lie deeper, and its own name."""
    *parts, base = name.split("/")
    return (directory.below(*parts) if parts else directory), base


def _copy(source: Path, target: Path) -> Path:
    """As shutil.copyfile, which however says that the source's disk is full when the target's is."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
    return target


def _digest(place: Place, name: str) -> str:
    digest = hashlib.sha256()
    for chunk in place.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()
