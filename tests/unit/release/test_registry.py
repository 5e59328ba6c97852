from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.digests import digest_file, seal, unseal
from pipeline.errors import ConflictError, ModelError, PipelineError, RegistryError
from pipeline.places import Place
from pipeline.release.line import Line, Moved, myself
from pipeline.release.registry import OPTION, open_registry, root_of
from pipeline.release.state import CANDIDATE, AliasState
from pipeline.release.trail import KEY_VARIABLE, Propose, Record, Trail, name_of
from pipeline.release.verify import verify
from pipeline.storage import open_storage
from tests.unit.release import interleavings, lines


@pytest.fixture
def unmoved(line: Line) -> Iterator[Line]:
    """A line that has to be as it was when the test is over."""
    records, state = line.trail.names(), line.state()
    yield line
    assert line.trail.names() == records
    assert line.state() == state
    assert line.alias(lines.ALIAS).version == 2


def promote(line: Line, version: int, expected: int = 2, **options: Any) -> Moved:
    return line.promote(lines.ALIAS, version, expected=expected, why="a test", **options)


class TestBeginning:
    def test_the_reference_is_version_0(self, root: str, models: Path, tmp_path: Path) -> None:
        line = lines.begin(root, models)
        assert (line.state().versions, line.number("reference"), line.versions.numbers()) == (1, 0, [0])
        assert line.label(0, line.state()) == "version 0 (the reference)"
        assert line.fetch("reference", tmp_path / "copies").version == 0
        registry = open_registry(root)
        assert (registry.lines(), registry.description(lines.NAME)) == ([lines.NAME], "a tiny model")
        assert registry.line().name == registry.line(lines.NAME[:4]).name == lines.NAME

    def test_a_second_time_changes_nothing(self, root: str, models: Path) -> None:
        record = lines.begin(root, models).trail.head()
        (models / "0" / "README.md").write_text("in another language")
        assert lines.begin(root, models).trail.head() == record

    def test_another_reference_of_the_same_name(self, line: Line, models: Path) -> None:
        other = lines.write_model(models / "other", 77)
        registry = open_registry(line.place.root.removesuffix(f"/{lines.NAME}"))
        with pytest.raises(
            RegistryError, match=rf"begins with another reference \(model\.safetensors differs\).*{OPTION}"
        ):
            registry.begin(lines.NAME, other, "another", {})
        assert line.state().versions == 5

    @pytest.mark.parametrize("name", ["", "short", "0123456g", "../01234567"])
    def test_names_that_no_line_has(self, root: str, models: Path, name: str) -> None:
        with pytest.raises(RegistryError, match="is no name of a line: 8 to 64 hexadecimal digits"):
            lines.begin(root, models, name)
        assert open_registry(root).lines() == []

    def test_a_directory_that_is_no_model(self, root: str, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        with pytest.raises(ModelError, match=r"has no config\.json"):
            open_registry(root).begin(lines.NAME, tmp_path / "x", "nothing", {})
        assert open_registry(root).lines() == []


class TestChoosingALine:
    def test_there_is_none(self, root: str) -> None:
        with pytest.raises(RegistryError, match=rf"no registry at .*: a run of jobs/align\.py makes one .*{OPTION}"):
            open_registry(root).line()

    def test_there_are_two(self, root: str, models: Path) -> None:
        for name in ("aaaaaaaa", "aaaabbbb"):
            lines.begin(root, models, name)
        registry = open_registry(root)
        for spec in (None, "aaaa"):
            with pytest.raises(
                RegistryError, match=r"2 lines in .*: choose one with --line\n  aaaaaaaa  a tiny model\n  aaaabbbb"
            ):
                registry.line(spec)
        with pytest.raises(RegistryError, match=r"no line 'b' in .*--line\n  aaaaaaaa"):
            registry.line("b")
        assert registry.line("aaaab").name == "aaaabbbb"

    def test_a_whole_name_that_begins_another(self, root: str, models: Path) -> None:
        for name in ("aaaaaaaa", "aaaaaaaabb"):
            lines.begin(root, models, name)
        assert open_registry(root).line("aaaaaaaa").name == "aaaaaaaa"

    def test_where_it_is(self, tmp_path: Path) -> None:
        assert root_of(open_storage(str(tmp_path)), None) == str(tmp_path / "registry")
        assert root_of(open_storage(str(tmp_path)), "s3://bucket/x") == "s3://bucket/x"


class TestNaming:
    def test_numbers_and_aliases(self, line: Line) -> None:
        specs = ("0", "3", "reference", lines.ALIAS, CANDIDATE)
        assert [line.number(spec) for spec in specs] == [0, 3, 0, 2, 3]
        assert line.label(2, line.state()) == "version 2 (production)"
        assert line.label(1, line.state()) == "version 1"

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("5", "no version 5 in .*, which has versions 0 to 4"),
            ("canary", "no version or alias 'canary' in .*; there are candidate, production, reference, and numbers"),
            ("-1", "no version or alias '-1'"),
        ],
    )
    def test_what_there_is_not(self, unmoved: Line, tmp_path: Path, spec: str, message: str) -> None:
        for act in (
            lambda: unmoved.number(spec),
            lambda: unmoved.fetch(spec, tmp_path),
            lambda: unmoved.roll_back(lines.ALIAS, spec, why="a test"),
            lambda: unmoved.remove(spec, why="a test"),
        ):
            with pytest.raises(RegistryError, match=message):
                act()


class TestPromotion:
    def test_it_moves(self, line: Line) -> None:
        before = line.alias(lines.ALIAS)
        moved = promote(line, 3, seen=before.moved_by, fence=4)
        record = moved.record
        assert record is not None
        assert (moved.before, moved.after, record.who, record.why) == (2, 3, myself(), "a test")
        assert line.alias(lines.ALIAS) == AliasState(3, record.number, (0, 1, 2))
        assert (line.state().fence, line.trail.head()) == (4, record)

    def test_to_where_it_is(self, unmoved: Line) -> None:
        assert promote(unmoved, 2) == Moved(2, 2, None)

    def test_what_it_expects_is_not_so(self, unmoved: Line) -> None:
        with pytest.raises(ConflictError, match="production points to version 2, not to 1: somebody else has moved it"):
            promote(unmoved, 3, expected=1)

    def test_it_went_elsewhere_and_came_back(self, line: Line) -> None:
        seen = line.alias(lines.ALIAS).moved_by
        promote(line, 3)
        line.roll_back(lines.ALIAS, why="a test")
        now = line.state()
        with pytest.raises(ConflictError, match=r"production was moved meanwhile .to version 2, by"):
            promote(line, 3, seen=seen)
        assert line.state() == now

    def test_an_older_lease(self, line: Line) -> None:
        line.fence(5, why="a new lease")
        now = line.state()
        for act in (
            lambda: promote(line, 3, fence=4),
            lambda: promote(line, 2, fence=4),
            lambda: line.fence(4, why="old"),
            lambda: line.decide(lines.ALIAS, 3, 3, seen=now.alias(lines.ALIAS).moved_by, why="", details={}, fence=4),
        ):
            with pytest.raises(ConflictError, match=r"token 4 was taken over \(token 5 has been here\): nothing was"):
                act()
        assert line.state() == now
        promote(line, 3, fence=5)

    def test_a_version_that_was_removed(self, unmoved: Line) -> None:
        with pytest.raises(RegistryError, match="version 4"):
            promote(unmoved, 4)

    @pytest.mark.parametrize("version", [-1, 9, 99_999_999_999])
    def test_a_version_that_is_not_there(self, unmoved: Line, version: int) -> None:
        with pytest.raises(RegistryError, match=f"there is no version {version} in"):
            promote(unmoved, version)

    @pytest.mark.parametrize("to", ["nothing", b"half"])
    def test_a_version_that_is_not_whole(self, unmoved: Line, to: str | bytes) -> None:
        for version in (1, 3):
            directory = unmoved.versions.directory(unmoved.versions.manifest(version))
            directory.remove("model.safetensors")
            if isinstance(to, bytes):
                directory.write("model.safetensors", to)
        seen = unmoved.alias(lines.ALIAS).moved_by
        for act in (
            lambda: promote(unmoved, 3),
            lambda: unmoved.roll_back(lines.ALIAS, why="a test"),
            lambda: unmoved.roll_back(lines.ALIAS, "3", why="a test"),
            lambda: unmoved.decide(lines.ALIAS, 3, 3, seen=seen, why="a test", details={}),
        ):
            with pytest.raises(
                RegistryError, match=r"version [13] in .* was copied by half: model\.safetensors .*register"
            ):
                act()

    @pytest.mark.parametrize("alias", ["reference", "Production", "a b", "../x", ""])
    def test_names_that_no_alias_has(self, unmoved: Line, alias: str) -> None:
        for act in (
            lambda: unmoved.promote(alias, 3, expected=0, why="a test"),
            lambda: unmoved.roll_back(alias, "reference", why="a test"),
            lambda: unmoved.decide(alias, 3, 3, seen=0, why="a test", details={}),
        ):
            with pytest.raises(RegistryError, match=r"cannot be moved: choose another|is no name of an alias"):
                act()

    def test_a_signed_trail_without_its_key(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        line.trail = Trail(line.place, key=b"a key")
        promote(line, 3)
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        again = Line(Place(line.place.root.removesuffix(f"/{lines.NAME}")), lines.NAME)
        for act in (lambda: promote(again, 1, expected=3), lambda: again.roll_back(lines.ALIAS, why="a test")):
            with pytest.raises(RegistryError, match=f"is signed: set {KEY_VARIABLE}"):
                act()
        assert again.alias(lines.ALIAS).version == 3


class TestRollBack:
    def test_to_the_version_before_and_no_further(self, line: Line) -> None:
        moved = line.roll_back(lines.ALIAS, why="it broke", who="me")
        assert (moved.before, moved.after) == (2, 1)
        assert moved.record is not None
        assert (moved.record.who, moved.record.why) == ("me", "it broke")
        records = line.trail.numbers()
        assert line.roll_back(lines.ALIAS, why="it broke") == Moved(1, 1, None)
        assert line.trail.numbers() == records

    @pytest.mark.parametrize(("to", "version"), [("reference", 0), ("0", 0), ("1", 1), ("3", 3), (CANDIDATE, 3)])
    def test_to_any_version(self, line: Line, to: str, version: int) -> None:
        assert line.roll_back(lines.ALIAS, to, why="a test").after == version
        assert line.alias(lines.ALIAS).version == version
        assert line.roll_back(lines.ALIAS, to, why="a test").record is None

    def test_an_alias_that_was_never_moved(self, unmoved: Line) -> None:
        with pytest.raises(RegistryError, match=r"there is no alias 'canary'; there are candidate, production"):
            unmoved.roll_back("canary", why="a test")
        with pytest.raises(RegistryError, match=r"there is no alias 'canary'"):
            unmoved.roll_back("canary", "reference", why="a test")

    def test_to_a_version_that_was_removed(self, unmoved: Line) -> None:
        with pytest.raises(RegistryError, match="version 4"):
            unmoved.roll_back(lines.ALIAS, "4", why="a test")

    def test_what_was_removed_is_passed_over(self, line: Line) -> None:
        line.remove("1", why="for its space")
        assert line.roll_back(lines.ALIAS, why="a test").after == 0

    def between(self, line: Line, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
        """Let somebody do something when the next append has been prepared, just before it is made."""
        append = line.trail.append

        def late(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(line.trail, "append", append)
            act()
            return append(*args, **options)

        monkeypatch.setattr(line.trail, "append", late)

    def test_a_promotion_just_before(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.between(line, monkeypatch, lambda: promote(line, 3))
        assert line.roll_back(lines.ALIAS, why="a test").after == 1
        assert line.alias(lines.ALIAS).version == 1

    def test_a_promotion_just_after(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.between(line, monkeypatch, lambda: line.roll_back(lines.ALIAS, why="a test"))
        with pytest.raises(ConflictError, match="production points to version 1, not to 2"):
            promote(line, 3)
        assert line.alias(lines.ALIAS).version == 1

    def test_a_second_roll_back_at_the_same_moment(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.between(line, monkeypatch, lambda: line.roll_back(lines.ALIAS, why="a test"))
        assert line.roll_back(lines.ALIAS, why="a test").record is None
        assert line.alias(lines.ALIAS).version == 1

    def test_its_target_is_removed_at_the_same_moment(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.between(line, monkeypatch, lambda: line.remove("1", why="a test"))
        with pytest.raises(RegistryError, match="version 1 was removed: choose another one"):
            line.roll_back(lines.ALIAS, why="a test")
        assert line.alias(lines.ALIAS).version == 2


class TestDecision:
    def test_it_is_written_with_its_numbers(self, line: Line) -> None:
        seen = line.alias(lines.ALIAS).moved_by
        record = line.decide(
            lines.ALIAS, 3, 3, seen=seen, why="better", details={"gate": {"outcome": "promote"}}, fence=1
        )
        assert line.trail.read(record.number).details == {"gate": {"outcome": "promote"}}
        assert (line.alias(lines.ALIAS).version, line.alias(CANDIDATE).version) == (3, 3)
        assert line.roll_back(lines.ALIAS, why="a test").after == 2

    def test_back_to_the_reference(self, line: Line) -> None:
        line.decide(lines.ALIAS, 3, 0, seen=line.alias(lines.ALIAS).moved_by, why="worse", details={})
        assert line.alias(lines.ALIAS).version == 0
        assert line.roll_back(lines.ALIAS, why="again").record is None

    def test_the_alias_has_moved_since(self, line: Line) -> None:
        seen = line.alias(lines.ALIAS).moved_by
        promote(line, 3)
        now = line.state()
        with pytest.raises(ConflictError, match="production was moved meanwhile"):
            line.decide(lines.ALIAS, 1, 1, seen=seen, why="better", details={})
        assert line.state() == now


class TestRemoval:
    def test_files_go_and_records_stay(self, line: Line) -> None:
        directory = line.versions.directory(line.versions.manifest(1))
        assert line.remove("1", why="for its space") == 1
        assert directory.names() == []
        assert line.state().removed == {1, 4}
        assert line.versions.numbers() == [0, 1, 2, 3, 4]
        assert verify(line).findings == ()
        records = line.trail.numbers()
        assert line.remove("1", why="again") == 1
        assert line.trail.numbers() == records

    @pytest.mark.parametrize(
        ("spec", "message"), [("reference", "never removed"), (lines.ALIAS, "what production points to: move it first")]
    )
    def test_what_is_kept(self, unmoved: Line, tmp_path: Path, spec: str, message: str) -> None:
        with pytest.raises(RegistryError, match=message):
            unmoved.remove(spec, why="a test")
        assert unmoved.fetch(spec, tmp_path / "copies").path.is_dir()


class TestRegistering:
    def test_the_same_model_is_the_same_version(self, line: Line, models: Path) -> None:
        records = line.trail.numbers()
        assert [lines.register(line, models, number) for number in (0, 1, 2, 3)] == [0, 1, 2, 3]
        assert line.trail.numbers() == records

    def test_what_killed_writers_left_gets_its_record(
        self, line: Line, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Line, "record_versions", lambda line: None)
        assert [lines.register(line, models, number) for number in (5, 6)] == [5, 6]
        with pytest.raises(RegistryError, match="there is no version 6"):
            promote(line, 6)
        monkeypatch.undo()
        assert lines.register(line, models, 7) == 7
        assert line.state().versions == 8
        assert [line.trail.read(number).why for number in line.trail.numbers()[-3:]] == [
            "model 5",
            "model 6",
            "model 7",
        ]
        promote(line, 6)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py"])
    def test_what_is_no_version(self, unmoved: Line, models: Path, name: str) -> None:
        directory = lines.write_model(models / "pickled", 9)
        (directory / name).write_bytes(b"")
        with pytest.raises(ModelError, match=f"{name} in .* may run code when it is loaded"):
            unmoved.register(directory, {}, why="a test")
        (directory / name).unlink()
        (directory / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match="has no tokenizer"):
            unmoved.register(directory, {}, why="a test")
        with pytest.raises(ModelError, match=r"has no config\.json"):
            unmoved.register(models / "nowhere", {}, why="a test")

    def test_links_are_followed(self, line: Line, models: Path, tmp_path: Path) -> None:
        """As in the cache of downloaded models, whose files are links to blobs."""
        source = lines.write_model(models / "blobs", 9)
        directory = models / "linked"
        directory.mkdir()
        for path in source.iterdir():
            (directory / path.name).symlink_to(path)
        version = line.register(directory, {}, why="a test").version
        shutil.rmtree(source)
        assert not (line.fetch(str(version), tmp_path / "copies").path / "config.json").is_symlink()


def test_processes_at_once_that_are_killed(tmp_path: Path) -> None:
    with interleavings.memory(tmp_path) as memory:
        outcome = interleavings.run(f"{memory}/registries", memory / "scratch", interleavings=60, races=5, stride=17)
    assert outcome["wrong"] == []
    assert outcome["interleavings"] == 60
    assert sum(outcome["kills"].values()) > 60
    assert all(outcome["points"].values())


def test_a_refusal_is_one_of_the_pipelines(unmoved: Line) -> None:
    """The commands print it as one message, without a traceback."""
    for wrong in ("9", "nobody"):
        with pytest.raises(PipelineError) as caught:
            unmoved.roll_back(lines.ALIAS, wrong, why="a test")
        assert "\n" not in str(caught.value)


def test_a_roll_back_says_what_it_left_when_a_promotion_was_faster(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    append = line.trail.append

    def late(propose: Propose, **said: Any) -> Record | None:
        """Between the look and the move somebody else moves."""
        monkeypatch.setattr(line.trail, "append", append)
        line.promote(lines.ALIAS, 3, expected=2, why="at the same moment")
        return append(propose, **said)

    monkeypatch.setattr(line.trail, "append", late)
    moved = line.roll_back(lines.ALIAS, why="complaints")
    assert (moved.before, moved.after) == (3, 1), "to where it was settled to go, from where it really was"
    assert line.alias(lines.ALIAS).version == 1


def reseal_manifest(line: Line, version: int, **changes: Any) -> None:
    """Change a manifest as somebody does who knows the format and not the key."""
    path = Path(line.place.root) / "versions" / name_of(version)
    path.write_bytes(seal({**unseal(path.read_bytes()), **changes}))


class TestWhatSomebodyElseMayWrite:
    def test_a_manifest_that_fits_its_files_and_not_its_record(self, local_line: Line, tmp_path: Path) -> None:
        manifest = local_line.versions.manifest(1)
        path = Path(local_line.versions.directory(manifest).root) / "config.json"
        path.write_text('{"model_type": "gpt_nex0"}')
        files = unseal((Path(local_line.place.root) / "versions" / name_of(1)).read_bytes())["files"]
        sha256 = digest_file(path)
        reseal_manifest(local_line, 1, files={**files, "config.json": {**files["config.json"], "sha256": sha256}})
        for use in (
            lambda: local_line.fetch("1", tmp_path),
            lambda: local_line.promote(lines.ALIAS, 1, expected=2, why="a test"),
            lambda: local_line.roll_back(lines.ALIAS, "1", why="a test"),
        ):
            with pytest.raises(RegistryError, match=r"the manifest of version 1 .* is not the one that was registered"):
                use()
        assert local_line.alias(lines.ALIAS).version == 2

    @pytest.mark.parametrize("name", ["../../evil.json", "/tmp/evil", "a//b", "a/./b", "a\\b", ""])
    def test_a_name_that_leads_out_of_the_version(self, local_line: Line, name: str) -> None:
        reseal_manifest(local_line, 1, files={name: {"bytes": 1, "sha256": "0" * 64}})
        with pytest.raises(RegistryError, match="is no file inside a version"):
            local_line.versions.manifest(1)

    def test_an_id_that_leads_elsewhere(self, local_line: Line) -> None:
        reseal_manifest(local_line, 1, id="../../elsewhere")
        with pytest.raises(RegistryError, match="is no id of a version"):
            local_line.versions.manifest(1)


def test_a_file_beside_a_version_is_not_in_the_way_of_a_roll_back(local_line: Line, tmp_path: Path) -> None:
    (Path(local_line.versions.directory(local_line.versions.manifest(1)).root) / ".DS_Store").write_text(
        "a file manager"
    )
    assert local_line.roll_back(lines.ALIAS, why="complaints").after == 1
    with pytest.raises(RegistryError, match=r"a file that does not belong to it: remove .*/\.DS_Store"):
        local_line.fetch("1", tmp_path)


def test_a_damaged_reference_is_made_whole_by_the_next_run(root: str, models: Path, tmp_path: Path) -> None:
    line = lines.begin(root, models)
    manifest = line.versions.manifest(0)
    line.versions.directory(manifest).write("config.json", b"{}")
    with pytest.raises(RegistryError, match=r"version 0 .* is damaged"):
        line.fetch("reference", tmp_path)
    lines.begin(root, models)
    assert line.fetch("reference", tmp_path).version == 0


def test_a_trail_that_is_gone(local_line: Line, models: Path, tmp_path: Path) -> None:
    for name in ("audit", "aliases"):
        shutil.rmtree(Path(local_line.place.root) / name)
    registry = open_registry(str(tmp_path / "registry"))
    lines.write_model(models / "0", 0)
    for use in (registry.line, lambda: registry.begin(lines.NAME, models / "0", "a tiny model", {})):
        with pytest.raises(RegistryError, match=r"the audit trail in .* is gone: restore .*/audit from a copy"):
            use()
    assert not (Path(local_line.place.root) / "audit").exists(), "none was begun in its place"


def test_a_file_beside_the_lines_is_no_line(local_line: Line, tmp_path: Path) -> None:
    (tmp_path / "registry" / "lines" / f"{lines.NAME}.json~").write_text("an editor's copy")
    assert open_registry(str(tmp_path / "registry")).lines() == [lines.NAME]
