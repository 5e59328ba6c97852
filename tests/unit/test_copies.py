"""Copies of artefacts on an object store, made on a node's own disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline import copies
from pipeline.artifacts import Store
from pipeline.copies import node_copy, remote_path, send
from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.storage import local_copy, open_storage

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, scratch: Path, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory://{tmp_path.name}/runs"
        fsspec.filesystem("memory").store.clear()
    else:
        yield request.getfixturevalue("s3_url")


@pytest.fixture
def where(url: str) -> str:
    """An artefact of two files."""
    with Store(url).stage("align", KEY, {}) as staging:
        (staging.path / "model").mkdir()
        (staging.path / "model" / "weights").write_bytes(b"w" * 1000)
        (staging.path / "training.json").write_text("{}")
    return Store(url).open("align", KEY).where


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are fetched from now on."""
    names: list[str] = []
    real = Place.chunks

    def chunks(self: Place, name: str, size: int = 1 << 20) -> Iterator[bytes]:
        names.append(name)
        return real(self, name, size)

    monkeypatch.setattr(Place, "chunks", chunks)
    return names


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From now on this is another node."""
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "other node"))


def test_a_directory_is_its_own_copy(tmp_path: Path) -> None:
    assert local_copy(str(tmp_path / "model")) == tmp_path / "model"


def test_what_was_made_here_is_not_fetched(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = counted(monkeypatch)
    assert (local_copy(f"{where}/model") / "weights").read_bytes() == b"w" * 1000
    assert fetched == []


def test_fetched_once_a_node_by_many_at_once(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, tmp_path)
    fetched, found = counted(monkeypatch), []
    threads = [threading.Thread(target=lambda: found.append(local_copy(f"{where}/model"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert (found[0] / "weights").read_bytes() == b"w" * 1000
    assert sorted(fetched) == ["training.json", "weights"]
    assert found[0].is_relative_to(tmp_path / "other node")


@pytest.mark.parametrize("damage", ["short", "other", "gone"])
def test_a_damaged_copy_is_fetched_again(where: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = local_copy(where) / "model" / "weights"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"w" * 999 if damage == "short" else b"x" * 1000)
    fetched = counted(monkeypatch)
    assert (local_copy(where) / "model" / "weights").read_bytes() == b"w" * 1000
    assert sorted(fetched) == ["training.json", "weights"]


def test_the_job_finds_what_only_reading_finds(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that changed under an unchanged time: a disk's fault."""
    file = local_copy(where) / "model" / "weights"
    before = file.stat()
    file.write_bytes(b"x" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (node_copy(where, full=True) / "model" / "weights").read_bytes() == b"w" * 1000


def test_what_differs_from_its_manifest_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(where)
    [directory] = place.folders()
    place.below(directory, "model").write("weights", b"x" * 1000)
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ArtifactError, match="model/weights differs from its manifest"):
        local_copy(where)
    assert not list((tmp_path / "other node").rglob("weights"))
    place.below(directory, "model").remove("weights")
    with pytest.raises(ArtifactError, match="model/weights is missing"):
        local_copy(where)


def test_an_artefact_that_was_made_again_is_another_one(where: str, url: str) -> None:
    first, store = local_copy(where), Store(url)
    store.discard("align", KEY)
    with pytest.raises(ArtifactError, match="is gone"):
        local_copy(where)
    with store.stage("align", KEY, {}) as staging:
        (staging.path / "training.json").write_text("[]")
    assert (local_copy(where) / "training.json").read_text() == "[]"
    assert local_copy(where) != first


def test_a_copy_of_a_local_store_is_read_too(url: str, tmp_path: Path) -> None:
    """As a person makes it who moves to an object store: the files beside their manifest."""
    with Store(str(tmp_path / "runs")).stage("align", KEY, {}) as staging:
        (staging.path / "model").mkdir()
        (staging.path / "model" / "weights").write_text("w")
    send(tmp_path / "runs" / "artifacts", f"{url}/artifacts")
    assert (Store(url).open("align", KEY).path / "model" / "weights").read_text() == "w"


def test_files_that_workers_have_sent_belong_to_the_artefact(url: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "weights").write_text("w")
    store = Store(url)
    with store.stage("align", KEY, {}) as staging:
        (staging.path / "note.txt").write_text("n")
        staging.sent |= send(tmp_path / "out", staging.where)
    artifact = store.open("align", KEY)
    assert {str(path.relative_to(artifact.path)) for path in artifact.path.rglob("*") if path.is_file()} == {
        "model/weights",
        "note.txt",
    }
    manifest = store.manifest("align", KEY)
    assert manifest is not None
    assert Place(artifact.where).folders() == [manifest["directory"]]


def test_what_a_worker_has_not_sent_whole_commits_nothing(url: str) -> None:
    store = Store(url)
    with (
        pytest.raises(ArtifactError, match="was not written whole: model/weights is missing"),
        store.stage("align", KEY, {}) as staging,
    ):
        staging.sent["model/weights"] = {"bytes": 3, "sha256": "0" * 64}
    assert not store.exists("align", KEY)


def test_a_commit_removes_what_killed_writers_left(url: str) -> None:
    place = Place(f"{url}/artifacts/align/{KEY}")
    place.below("files-dead").write("weights", b"half")
    with Store(url).stage("align", KEY, {}) as staging:
        (staging.path / "weights").write_text("w")
    assert all(not name.startswith("files-dead") for name in place.sizes())


@pytest.mark.parametrize("name", ["../../../../outside", "/outside", "model/../../../outside", "..\\outside"])
def test_a_manifest_whose_names_lead_out_is_refused(where: str, tmp_path: Path, name: str) -> None:
    """Whoever may write the storage can seal a manifest of his own; no node writes files of his choice."""
    place = Place(where)
    manifest = unseal(place.read("manifest.json"))
    [(_, weights)] = [item for item in manifest["files"].items() if item[0] == "model/weights"]
    place.write("manifest.json", seal({**manifest, "files": {name: weights}}))
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        local_copy(where)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        Store(where.partition("/artifacts/")[0], create=False).open("align", KEY)
    assert not list(tmp_path.rglob("outside"))


def test_a_commit_whose_answer_was_lost_is_a_commit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again and hears that the object is there: it is its own, and its files stay."""
    create = Place.create

    def twice(self: Place, name: str, data: bytes) -> bool:
        create(self, name, data)
        return create(self, name, data)

    monkeypatch.setattr(Place, "create", twice)
    with Store(url).stage("align", KEY, {}) as staging:
        (staging.path / "weights").write_text("w")
    assert (node_copy(Store(url).open("align", KEY).where, full=True) / "weights").read_text() == "w"


def test_copies_that_nobody_asks_for_go(where: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = local_copy(where)
    with Store(url).stage("data", KEY, {}) as staging:
        (staging.path / "rows").write_text("r")
    monkeypatch.setattr(copies, "KEPT_S", -1.0)
    local_copy(f"{url}/artifacts/data/{KEY}")
    assert not old.exists()
    monkeypatch.undo()


def test_only_artefacts_are_fetched() -> None:
    with pytest.raises(ArtifactError, match="is not the URL of an artefact"):
        remote_path("s3://bucket/runs/reports/x")
    at = remote_path("s3://bucket/artifacts/runs/artifacts/align/KEY/model/")
    assert (at.root, at.stage, at.key, at.inside) == ("s3://bucket/artifacts/runs", "align", "KEY", "model")


def test_a_storage_says_where_things_are(scratch: Path, tmp_path: Path) -> None:
    remote, local = open_storage("s3://bucket/runs/"), open_storage(str(tmp_path))
    assert (remote.root, remote.is_local, remote.at("reports", "x")) == (
        "s3://bucket/runs",
        False,
        "s3://bucket/runs/reports/x",
    )
    assert remote.here.parent == scratch
    assert (local.root, local.here, local.is_local) == (str(tmp_path), tmp_path, True)
    assert local.place("a").root == str(tmp_path / "a")
