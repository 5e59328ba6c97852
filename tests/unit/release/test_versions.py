from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError, ModelError, RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.manifest import (
    FileEntry,
    check_model_directory,
    describe_files,
    id_of,
    identity_of,
    parse_manifest,
)
from pipeline.release.trail import name_of
from pipeline.release.versions import Versions
from tests.unit.release import lines


@pytest.fixture
def model(models: Path) -> Path:
    return lines.write_model(models / "x", 1)


def write(place: Place, directory: str, name: str, data: bytes) -> None:
    place.below("models", directory).write(name, data)


class TestModelDirectory:
    def test_one_that_can_be_loaded(self, model: Path) -> None:
        check_model_directory(model)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("config.json", r"x has no config\.json, so it is not a Hugging Face model directory"),
            ("model.safetensors", r"x has no weights in \*\.safetensors; save the model with model\.save_pretrained"),
            ("tokenizer.json", r"x has no tokenizer \(tokenizer\.json\); save it beside the weights"),
        ],
    )
    def test_a_part_is_missing(self, model: Path, missing: str, message: str) -> None:
        (model / missing).unlink()
        with pytest.raises(ModelError, match=message):
            check_model_directory(model)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "deep/er/w.pt", "x.ckpt", "w.pkl", "modeling.py", "a.pth"])
    def test_what_runs_code_when_it_is_loaded(self, model: Path, name: str) -> None:
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        with pytest.raises(ModelError, match=rf"{name} in .* may run code when it is loaded.*; remove it"):
            check_model_directory(model)


class TestDigests:
    def test_files(self, model: Path) -> None:
        (model / "deep").mkdir()
        (model / "deep" / "a").write_bytes(b"abc")
        files = describe_files(model)
        assert files["deep/a"] == FileEntry(3, hashlib.sha256(b"abc").hexdigest())
        assert sorted(files) == ["README.md", "config.json", "deep/a", "model.safetensors", "tokenizer.json"]

    def test_cards_do_not_make_another_version(self, model: Path) -> None:
        before = describe_files(model)
        (model / "README.md").write_text("日本語")
        after = describe_files(model)
        assert identity_of(before) == identity_of(after)
        assert id_of(before) != id_of(after)
        (model / "config.json").write_text("{}")
        assert identity_of(describe_files(model)) != identity_of(before)

    def test_the_id_of_a_removed_version_is_never_used_again(self, model: Path) -> None:
        files = describe_files(model)
        first = id_of(files)
        second = id_of(files, {first, "another"})
        assert len({first, second, id_of(files, {first, second})}) == 3
        assert id_of(files, {second}) == first


class TestManifest:
    def test_what_it_says(self, line: Line, models: Path) -> None:
        lines.write_model(models / "5", 5)
        found = line.register(models / "5", {"data": "x" * 64}, why="a test", who="me")
        files = describe_files(models / "5")
        assert line.versions.manifest(5) == found
        assert (found.version, found.files, found.id, found.identity) == (5, files, id_of(files), identity_of(files))
        assert (found.provenance, found.who, found.why) == ({"data": "x" * 64}, "me", "a test")
        assert found.bytes == sum(entry.bytes for entry in files.values())
        assert line.versions.numbers() == list(range(6))

    def test_one_that_is_not_whole(self, line: Line) -> None:
        manifests = line.place.below("versions")
        data = manifests.read(name_of(2))
        for bad, message in (
            (data[:-3], "the manifest of version 2 in .* is damaged: .*; restore it from a copy"),
            (seal({"version": 2}), "the manifest of version 2 in .* is damaged: it is no manifest"),
            (seal(unseal(data) | {"files": []}), "it is no manifest"),
            (manifests.read(name_of(1)), "the manifest of version 2 in .* says that it is version 1"),
        ):
            manifests.write(name_of(2), bad)
            with pytest.raises(RegistryError, match=message):
                line.versions.manifest(2)
            with pytest.raises(RegistryError, match="version 2"):
                line.promote(lines.ALIAS, 2, expected=2, why="a test")
        with pytest.raises(ValueError, match="differs from its own digest"):
            parse_manifest(data.replace(b"model 2", b"model 3"))

    def test_one_that_is_not_there(self, line: Line) -> None:
        with pytest.raises(RegistryError, match="there is no version 9 in"):
            line.versions.manifest(9)


class TestFiles:
    def test_a_tree_is_kept(self, root: str, model: Path, tmp_path: Path) -> None:
        (model / "deep" / "er").mkdir(parents=True)
        (model / "deep" / "er" / "a.txt").write_text("a")
        line = lines.begin(root, model.parent)
        found = line.register(model, {}, why="deep")
        fetched = line.fetch(str(found.version), tmp_path / "copies")
        assert lines.files_of(fetched.path) == lines.files_of(model)
        assert line.versions.strangers(found) == []

    @pytest.mark.parametrize("name", ["model.safetensors", "deep/a"])
    def test_damage(self, root: str, model: Path, name: str) -> None:
        (model / "deep").mkdir()
        (model / "deep" / "a").write_bytes(b"0123456789")
        line = lines.begin(root, model.parent)
        manifest = line.register(model, {}, why="a test")
        *parts, base = name.split("/")
        place = line.versions.directory(manifest).below(*parts) if parts else line.versions.directory(manifest)
        whole = place.read(base)

        def damage(full: bool = True) -> list[str]:
            return list(line.versions.damage(line.versions.directory(manifest), manifest.files, full=full))

        assert damage() == []
        place.write(base, whole[:-1] + b"?")
        assert (damage(), damage(full=False)) == ([f"{name} differs from its digest"], [])
        place.write(base, whole[:-1])
        assert damage(full=False) == [f"{name} has {len(whole) - 1} B ({len(whole) - 1:,} bytes) of {len(whole):,}"]
        place.remove(base)
        assert damage(full=False) == [f"{name} is missing"]
        for full in (True, False):
            with pytest.raises(
                RegistryError, match=r"version 1 .* damaged or was copied by half: .* is missing; regis"
            ):
                line.versions.require(1, full=full)

    def test_the_same_model_again_makes_it_whole(self, line: Line, models: Path) -> None:
        directory = line.versions.directory(line.versions.manifest(2))
        before = {name: directory.read(name) for name in directory.names()}
        directory.remove("model.safetensors")
        directory.write("config.json", b"?")
        records = line.trail.numbers()
        assert lines.register(line, models, 2) == 2
        assert {name: directory.read(name) for name in directory.names()} == before
        assert line.versions.require(2, full=True).version == 2
        assert line.trail.numbers() == records

    def test_a_card_in_another_language_does_not_make_a_damaged_one_whole(self, local_line: Line, models: Path) -> None:
        directory = local_line.versions.directory(local_line.versions.manifest(2))
        lines.write_model(models / "2", 2).joinpath("README.md").write_text("日本語")
        assert lines.register(local_line, models, 2) == 2
        directory.remove("README.md")
        with pytest.raises(RegistryError, match=r"version 2 .* is the same model, but its README\.md is damaged"):
            lines.register(local_line, models, 2)

    def test_what_a_killed_writer_left(self, line: Line, models: Path) -> None:
        """Half a copy, and a whole one, neither with a manifest."""
        for number, half in ((5, True), (6, False)):
            source = lines.write_model(models / str(number), number)
            for name in describe_files(source):
                data = (source / name).read_bytes()
                write(line.place, id_of(describe_files(source)), name, data[: len(data) // 2] if half else data)
            assert lines.register(line, models, number) == number
            assert line.versions.require(number, full=True).version == number

    def test_what_was_removed_comes_again_elsewhere(self, line: Line, models: Path, tmp_path: Path) -> None:
        old = line.versions.manifest(4)
        assert line.versions.directory(old).names() == []
        assert lines.register(line, models, 4) == 5
        new = line.versions.manifest(5)
        assert (new.identity, new.files) == (old.identity, old.files)
        assert new.id != old.id
        line.remove("4", why="once more: its files may not have been removed before a kill")
        assert line.fetch("5", tmp_path / "copies").version == 5

    def test_a_source_that_changes_while_it_is_copied(
        self, root: str, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = lines.begin(root, model.parent)
        put = Versions.put

        def change(versions: Versions, source: Path, *rest: object) -> None:
            (model / "config.json").write_text('{"model_type": "gpt_neoX"}')
            put(versions, source, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Versions, "put", change)
        with pytest.raises(
            RegistryError, match=r"could not be written: config\.json differs from its digest; try again"
        ):
            line.register(model, {}, why="a test")
        assert (line.versions.numbers(), line.state().versions) == ([0], 1)


class TestFetch:
    def test_a_local_version_is_read_where_it_is(self, local_line: Line, tmp_path: Path) -> None:
        fetched = local_line.fetch(lines.ALIAS, tmp_path / "copies")
        assert (fetched.version, fetched.label) == (2, "version 2 (production)")
        assert fetched.path.is_relative_to(local_line.place.root)
        assert not (tmp_path / "copies").exists()

    @pytest.fixture
    def remote(self, tmp_path: Path, models: Path) -> Iterator[Line]:
        line = lines.begin_with_history(f"memory://{tmp_path.name}/registry", models)
        yield line
        fsspec.filesystem("memory").store.clear()

    def test_a_copy_is_made_once_and_again_when_it_is_damaged(self, remote: Line, models: Path, tmp_path: Path) -> None:
        into = tmp_path / "copies"
        path = remote.fetch("2", into).path
        assert lines.files_of(path) == lines.files_of(models / "2")
        made = (path / "model.safetensors").stat().st_ino
        assert (remote.fetch("2", into).path / "model.safetensors").stat().st_ino == made
        (path / "config.json").write_text("?")
        assert lines.files_of(remote.fetch("2", into).path) == lines.files_of(models / "2")
        (path / "config.json").unlink()
        assert lines.files_of(remote.fetch("2", into).path) == lines.files_of(models / "2")
        assert [one.name for one in into.iterdir() if one.name != ".scratch"] == [path.name]
        assert list((into / ".scratch").iterdir()) == []

    @pytest.mark.parametrize("damaged", [None, b"?"])
    def test_a_damaged_version_is_not_fetched(self, remote: Line, tmp_path: Path, damaged: bytes | None) -> None:
        directory = remote.versions.directory(remote.versions.manifest(2))
        directory.remove("model.safetensors")
        if damaged:
            directory.write("model.safetensors", damaged)
        with pytest.raises(RegistryError, match=r"version 2 in .* is damaged: model\.safetensors"):
            remote.fetch("2", tmp_path / "copies")
        assert [one.name for one in (tmp_path / "copies").iterdir()] == [".scratch"]

    def test_two_at_once(self, remote: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second finds the first's copy when its own is made, and leaves it to who may be reading it."""
        into = tmp_path / "copies"
        inodes: list[int] = []
        chunks = Place.chunks

        def slow(place: Place, name: str, size: int = 1 << 20) -> object:
            if not inodes and not place.is_local:
                inodes.append(0)
                inodes[0] = (remote.fetch("2", into).path / "config.json").stat().st_ino
            return chunks(place, name, size)

        monkeypatch.setattr(Place, "chunks", slow)
        path = remote.fetch("2", into).path
        assert [(path / "config.json").stat().st_ino] == inodes

    def test_a_full_disk_for_copies(self, remote: Line, models: Path, small_disk: Callable[[str], Path]) -> None:
        directory = lines.write_model(models / "big", 9, weights_bytes=1 << 20)
        remote.register(directory, {}, why="big")
        into = small_disk("size=128k")
        with pytest.raises(
            ArtifactError, match=f"copies of versions cannot be written to {into}: the disk is full; free"
        ):
            remote.fetch("5", into)
        assert [one.name for one in into.iterdir()] == [".scratch"]

    def test_a_removed_version(self, line: Line, tmp_path: Path) -> None:
        with pytest.raises(RegistryError, match=r"version 4 was removed from .*; choose another"):
            line.fetch("4", tmp_path)
