"""Whatever is changed in a line is found: every byte, every file, the order, the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.digests import seal, unseal
from pipeline.errors import RegistryError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.release.trail import FIRST, KEY_VARIABLE, Trail, mac_of, name_of
from pipeline.release.verify import Verified, verify
from tests.unit.release import lines

KEY = "the key of the tests"


@pytest.fixture(params=["signed", "not signed"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of a line with some history."""
    signed = request.param == "signed"
    made = request.getfixturevalue("signed_history" if signed else "history")
    if signed:
        request.getfixturevalue("monkeypatch").setenv(KEY_VARIABLE, KEY)
    return lines.copy_of(made, tmp_path)


@pytest.fixture(scope="module")
def signed_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        made = tmp_path_factory.mktemp("signed")
        lines.begin_with_history(str(made), tmp_path_factory.mktemp("models"))
    return made


def open_line(directory: Path) -> Line:
    return Line(Place(str(directory.parent)), directory.name)


def verified(directory: Path, **options: object) -> Verified:
    return verify(open_line(directory), **options)  # type: ignore[arg-type]


def found(directory: Path, **options: object) -> str:
    """All findings."""
    return "\n".join(verified(directory, **options).findings)


def test_a_whole_line(directory: Path) -> None:
    looked = verified(directory)
    newest = open_line(directory).trail.head()
    assert newest is not None
    signed = 0 if newest.mac is None else newest.number
    assert looked == Verified((), newest.number, 5, newest.digest, signed, 0)
    for head in (newest.digest, newest.previous, newest.digest[:12]):
        assert verified(directory, head=head) == looked


def test_a_line_on_an_object_store(line: Line) -> None:
    assert verify(line).findings == ()


def test_one_that_is_not_there(tmp_path: Path) -> None:
    assert verified(tmp_path / "none") == Verified((), 0, 0, FIRST, 0, 0)


def change_bytes(directory: Path, every: int) -> Iterator[tuple[Path, int]]:
    """Each of the bytes of every file, changed in one bit while the caller looks."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and ".scratch" not in path.parts):
        data = path.read_bytes()
        for at in range(0, len(data), every):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << (at // every + at) % 8)]) + data[at + 1 :])
            yield path, at
        path.write_bytes(data)


def check_every_byte(directory: Path, every: int, tmp_path: Path) -> int:
    line, bytes_changed = open_line(directory), 0
    newest = name_of(line.trail.numbers()[-1])
    versions = {line.versions.manifest(number).id: number for number in line.versions.numbers()}
    for path, at in change_bytes(directory, every):
        kind, where = path.relative_to(directory).parts[0], f"byte {at} of {path.relative_to(directory)}"
        assert verify(line).findings, where
        if kind == "models":
            with pytest.raises(RegistryError, match="differs from its digest"):
                line.fetch(str(versions[path.relative_to(directory).parts[1]]), tmp_path)
        elif path.name == newest:
            with pytest.raises(RegistryError, match=r"trail .* was changed"):
                line.state()
        bytes_changed += 1
    assert verify(line).findings == ()
    return bytes_changed


def test_some_bytes(directory: Path, tmp_path: Path) -> None:
    assert check_every_byte(directory, 53, tmp_path) > 200


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_byte(directory: Path, tmp_path: Path) -> None:
    """Of records, tables, manifests and models."""
    print(f"\n{check_every_byte(directory, 1, tmp_path):,} bytes changed one after another, each found")


def test_every_byte_of_a_lines_own_document(directory: Path) -> None:
    registry = open_registry(str(directory.parent))
    for _ in change_bytes(directory.parent / "lines", 1):
        with pytest.raises(RegistryError, match=r"is damaged: .*; restore lines/"):
            registry.description(lines.NAME)
    assert registry.description(lines.NAME) == "a tiny model"


def test_every_file_that_is_removed(directory: Path) -> None:
    """But the newest table: it is missing too where a writer was killed, and is made again by whoever appends next."""
    newest, missed = name_of(open_line(directory).trail.numbers()[-1]), []
    for path in [path for path in directory.rglob("*") if path.is_file() and ".scratch" not in path.parts]:
        data = path.read_bytes()
        path.unlink()
        if not verified(directory).findings:
            missed.append(path.relative_to(directory).as_posix())
        path.write_bytes(data)
    assert missed == [f"aliases/{newest}"]
    assert found(directory) == ""


@pytest.mark.parametrize(
    "name",
    [
        "audit/00000099.json",
        "audit/notes.txt",
        "audit/².json",
        "aliases/00000099.json",
        "aliases/x",
        "versions/00000099.json",
        "versions/x.json",
        "models/{id}/pytorch_model.bin",
        "models/{id}/deep/er/model.py",
        "models/{id}/.hidden",
    ],
)
def test_a_file_that_is_put_in(directory: Path, name: str) -> None:
    manifest = open_line(directory).versions.manifest(2)
    path = directory / name.format(id=manifest.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    assert path.name in found(directory) or str(int(path.stem)) in found(directory)
    if name.startswith("models"):
        with pytest.raises(RegistryError, match="does not belong to it"):
            open_line(directory).fetch("2", directory)


def test_a_manifest_from_elsewhere(directory: Path) -> None:
    """With the right seal: of another version, and of a version that was never registered."""
    manifests = directory / "versions"
    shutil.copy(manifests / name_of(1), manifests / name_of(3))
    assert "version 3" in found(directory)
    value = unseal((manifests / name_of(1)).read_bytes())
    (manifests / name_of(3)).write_bytes(seal(value | {"version": 3}))
    assert "the manifest of version 3 is not the one that was registered" in found(directory)


def test_records_that_change_places(directory: Path) -> None:
    for one, other in ((1, 2), (3, 5), (2, open_line(directory).trail.numbers()[-1])):
        for kinds in (["audit"], ["audit", "aliases"]):
            before = lines.files_of(directory)
            for kind in kinds:
                paths = [directory / kind / name_of(number) for number in (one, other)]
                first, second = (path.read_bytes() for path in paths)
                paths[0].write_bytes(second)
                paths[1].write_bytes(first)
            assert "the order was changed" in found(directory)
            for name, data in before.items():
                (directory / name).write_bytes(data)
    assert found(directory) == ""


def cut(directory: Path, count: int, kinds: tuple[str, ...]) -> None:
    numbers = open_line(directory).trail.numbers()
    for number in numbers[len(numbers) - count :]:
        for kind in kinds:
            (directory / kind / name_of(number)).unlink()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_end_is_cut_off(directory: Path, count: int) -> None:
    head = verified(directory).head
    cut(directory, count, ("audit",))
    assert "is missing at the end: its aliases are there" in found(directory)
    with pytest.raises(RegistryError, match="is missing, though the aliases were moved by it"):
        open_line(directory).state()
    assert "the trail was cut" in found(directory, head=head)


@pytest.mark.parametrize("count", [1, 4])
def test_the_end_is_cut_off_with_its_tables(directory: Path, count: int) -> None:
    """What is left is a shorter line that is whole, so that only who has noted a digest can know. Where a version's
    record was cut off too, its manifest looks like that of a writer who was killed."""
    open_line(directory).fence(1, why="one more")
    noted = verified(directory).head
    cut(directory, count, ("audit", "aliases"))
    assert found(directory) == ""
    assert found(directory, head=noted) == (
        f"no record has the digest {noted}: the trail was cut, or written anew, since that was noted"
    )
    assert "the trail was cut" in found(directory, head=noted[:12])


def rewrite(directory: Path, key: bytes | None, signed: range = range(10**6)) -> None:
    """The whole trail anew, with other reasons and everything else as it has to be."""
    trail, previous = Trail(Place(str(directory)), key), FIRST
    for number in trail.numbers():
        value = unseal(trail.record_bytes(number)) | {"previous": previous, "why": "for no reason"}
        value["mac"] = mac_of(value, key) if key and number in signed else None
        (directory / "audit" / name_of(number)).write_bytes(seal(value))
        record = trail.read(number)
        (directory / "aliases" / name_of(number)).write_bytes(seal(trail.table(record)))
        previous = record.digest


class TestTheWholeTrailWrittenAnew:
    @pytest.fixture
    def signed(self, signed_history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        return lines.copy_of(signed_history, tmp_path)

    def test_without_signatures(self, signed: Path) -> None:
        rewrite(signed, None)
        assert found(signed) == f"no record is signed, though {KEY_VARIABLE} is set"

    def test_with_another_key(self, signed: Path) -> None:
        rewrite(signed, b"guessed")
        looked = verified(signed)
        assert looked.findings == tuple(
            f"record {number} is not signed with this key" for number in range(1, looked.records + 1)
        )

    def test_signed_in_part(self, signed: Path) -> None:
        rewrite(signed, KEY.encode(), range(3, 5))
        assert "record 5 is not signed, though earlier ones are" in found(signed)

    def test_who_has_the_key_does_not_follow_what_is_not_signed_with_it(self, signed: Path) -> None:
        rewrite(signed, KEY.encode(), range(1, 9))
        with pytest.raises(RegistryError, match="record 9 is not signed, though earlier ones are"):
            open_line(signed).state()
        rewrite(signed, b"guessed")
        with pytest.raises(RegistryError, match=f"record 9 is not signed with the key in {KEY_VARIABLE}"):
            open_line(signed).state()

    def test_with_signatures_of_other_records(self, signed: Path) -> None:
        macs = [open_line(signed).trail.read(number).mac for number in (1, 2)]
        rewrite(signed, KEY.encode())
        assert found(signed) == "", "who knows the key can write everything"
        path = signed / "audit" / name_of(2)
        path.write_bytes(seal(unseal(path.read_bytes()) | {"mac": macs[0]}))
        assert "record 2 is not signed with this key" in found(signed)

    def test_who_does_not_know_the_key_is_told_what_was_not_checked(
        self, signed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(KEY_VARIABLE)
        looked = verified(signed)
        assert (looked.findings, looked.signed, looked.unchecked) == ((), 0, looked.records)

    def test_a_digest_that_was_noted(self, directory: Path) -> None:
        noted = verified(directory).head
        rewrite(directory, KEY.encode())
        assert "the trail was cut, or written anew" in found(directory, head=noted)


def change_record(directory: Path, number: int, **changes: object) -> None:
    """A record with its seal, and all that follow, so that only its contents are wrong."""
    path = directory / "audit" / name_of(number)
    path.write_bytes(seal(unseal(path.read_bytes()) | changes))
    rewrite(directory, None)


class TestEventsThatCannotHaveHappened:
    @pytest.fixture
    def plain(self, local_line: Line) -> Path:
        return Path(local_line.place.root)

    def test_a_state_that_does_not_follow(self, plain: Path) -> None:
        last = open_line(plain).trail.numbers()[-1]
        state = open_line(plain).state().as_dict()
        state["aliases"][lines.ALIAS]["version"] = 1
        change_record(plain, last, state=state)
        assert f"record {last} says another state than follows from its event" in found(plain)

    def test_a_move_of_an_alias_that_is_elsewhere(self, plain: Path) -> None:
        event = {
            "kind": "promoted",
            "version": 1,
            "moves": [{"alias": lines.ALIAS, "before": 1, "after": 0}],
            "fence": None,
        }
        last = open_line(plain).trail.numbers()[-1]
        change_record(plain, last, event=event)
        assert f"record {last} cannot have happened: production points to version 2, not to 1" in found(plain)

    @pytest.mark.parametrize("field", ["event", "state", "details", "number", "previous", "mac"])
    @pytest.mark.parametrize("value", [None, 7, "x", [], {}, {"kind": 1}, {"versions": "x"}])
    def test_contents_of_another_kind(self, plain: Path, field: str, value: object) -> None:
        """Findings, whatever it is, and no crash; a record that says the same as before is none."""
        path = plain / "audit" / name_of(4)
        was = unseal(path.read_bytes())
        path.write_bytes(seal(was | {field: value}))
        assert verified(plain).findings or was[field] == value
        newest = plain / "audit" / name_of(open_line(plain).trail.numbers()[-1])
        was = unseal(newest.read_bytes())
        newest.write_bytes(seal(was | {field: value}))
        if was[field] != value:
            with pytest.raises(RegistryError, match="was changed"):
                open_line(plain).state()


def test_files_are_looked_at_by_their_size_at_least(local_line: Line) -> None:
    weights = Path(local_line.versions.directory(local_line.versions.manifest(1)).root) / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + b"?")
    assert verify(local_line, files=False).findings == ()
    assert verify(local_line).findings == ("version 1: model.safetensors differs from its digest",)
    weights.write_bytes(data[:-1])
    assert f"of {len(data):,}" in verify(local_line, files=False).findings[0]


def test_a_version_without_a_record(local_line: Line, models: Path) -> None:
    """The newest may be one that is just being registered; an older one cannot be."""
    lines.register(local_line, models, 5)
    cut(Path(local_line.place.root), 1, ("audit", "aliases"))
    assert verify(local_line).findings == ()
    local_line.record_versions()
    assert local_line.state().versions == 6
    assert json.loads(local_line.trail.record_bytes(local_line.trail.numbers()[-1]))["why"] == "model 5"
