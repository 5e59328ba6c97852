"""Checkpoints below a URL: what is committed, found, fetched by a node, and removed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import IDENTITY, write_checkpoint

from pipeline.checkpoints import remote
from pipeline.checkpoints.directory import Checkpoint, RunDirectory
from pipeline.checkpoints.layout import METRICS, StoredFile
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.checkpoints.remote import RemoteRun, open_run
from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError, ClusterError
from pipeline.places import Place

SHAPES = {"a": (3, 4), "b": (5,)}
CUTS = [{"a": (0, 7)}, {"a": (7, 12), "b": (0, 5)}]


class HandedIn(RemoteRun):
    """As the ranks use it: every file is handed in before the checkpoint is committed."""

    def commit(self, step: int, manifest: Any) -> None:
        for one in (*manifest["files"], manifest["metrics"]):
            self.hand_in(step, StoredFile(**one))
        super().commit(step, manifest)


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    if request.param == "memory":
        yield f"memory://{tmp_path.name}/run"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"{request.getfixturevalue('s3_url')}/run"


def run(url: str, steps: Sequence[int] = (), identity: Any = IDENTITY) -> HandedIn:
    directory = HandedIn(url, identity)
    directory.prepare()
    for step in steps:
        write_checkpoint(directory, step, SHAPES, CUTS, b'{"step": %d}\n' % step, seed=step)
    return directory


def silent(text: str) -> None:
    pytest.fail(text)


def object_of(url: str, step: int, name: str) -> tuple[Place, str]:
    files = Place(f"{url}/files")
    return files, next(one for one in files.names() if one.startswith(f"step-{step:08d}-") and one.endswith(name))


@pytest.mark.parametrize("name", ["../../outside", "/outside", ".."])
def test_names_that_lead_out_are_refused(url: str, name: str, tmp_path: Path) -> None:
    """Whoever may write the storage can seal a manifest of his own; no node writes files of his choice."""
    directory, place = run(url, [3]), Place(url)
    manifest = unseal(place.read("step-00000003.json"))
    manifest["files"][0]["name"] = name
    place.write("step-00000003.json", seal(manifest))
    for look in (directory.verify, directory.fetch):
        with pytest.raises(ArtifactError, match="which is no file of a checkpoint"):
            look(3)
    assert not list(tmp_path.rglob("outside"))


def test_a_url_or_a_directory(url: str, tmp_path: Path) -> None:
    assert isinstance(open_run(url, {}), RemoteRun)
    assert type(open_run(str(tmp_path), {})) is RunDirectory


def test_the_newest_one_is_fetched_by_another_node(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {}
    directory = run(url)
    for step in (3, 9):
        values[step] = write_checkpoint(directory, step, SHAPES, CUTS, b"rows\n", seed=step)
    assert directory.steps() == [3, 9]
    assert not list(directory.path.rglob("*.safetensors")), "what was sent takes no room on the node"
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "other node"))
    there = RemoteRun(url, IDENTITY)
    found = there.newest(silent)
    assert found is not None
    assert found.step == 9
    with there.on_this_node():
        copy = there.fetch(9)
        assert copy.path.is_relative_to(tmp_path / "other node")
        reader = CheckpointReader(copy.path, copy.manifest)
        assert torch.equal(reader.whole("exp_avg", "a").reshape(-1), values[9]["exp_avg"]["a"])
        assert copy.rows() == b"rows\n"
        before = (copy.path / METRICS).stat().st_mtime_ns
        assert (there.fetch(9).path / METRICS).stat().st_mtime_ns == before, "once a node"
    assert not copy.path.exists()


@pytest.mark.parametrize("damage", ["short", "changed", "gone"])
def test_a_damaged_one_is_named_and_an_older_one_taken(url: str, damage: str) -> None:
    directory, said = run(url, (3, 9)), []
    files, name = object_of(url, 9, "rank-00001.safetensors")
    data = files.read(name)
    if damage == "gone":
        files.remove(name)
    else:
        files.write(name, data[:-1] if damage == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    found = directory.newest(said.append)
    assert found is not None
    assert found.step == 3
    why = {"short": "bytes instead of", "changed": "has changed", "gone": "is missing"}[damage]
    assert any(f"rank-00001.safetensors {why}" in line or (why in line and "rank-00001" in line) for line in said)
    with pytest.raises(ArtifactError, match=r"rank-00001\.safetensors"):
        directory.fetch(9)
    assert not (directory.path / "step-00000009").exists()


def test_none_that_can_be_used(url: str) -> None:
    directory = run(url, (3,))
    Place(url).write("step-00000003.json", b"{}")
    with pytest.raises(ArtifactError, match=r"no checkpoint in .*/run can be used: step-00000003 is damaged"):
        directory.newest(lambda text: None)


def test_another_run(url: str) -> None:
    run(url, (3,))
    other = RemoteRun(url, IDENTITY | {"data": "e" * 32})
    for act in (other.prepare, lambda: other.newest(silent)):
        with pytest.raises(ArtifactError, match=r"belongs to another run: the data dddddddddddd there, eeeeeeeeeeee"):
            act()


def test_one_that_was_pruned_meanwhile_is_looked_for_again(url: str) -> None:
    with pytest.raises(ClusterError, match="step-00000004 is gone"):
        run(url, (3,)).fetch(4)


def test_a_writer_that_was_taken_over_commits_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was suspended for so long that another worker took its lease."""
    monkeypatch.setattr(remote, "_STALE_S", 0.3)
    first, second = run(url, (3,)), run(url)
    with first.writing(1):
        refused = pytest.raises(ArtifactError, match="being written by another process")
        with refused, second.writing(0.5):
            pass
        assert first._lease is not None
        monkeypatch.setattr(first._lease, "_keep", lambda: None)
        first._lease._stop.set()
        with second.writing(5):
            with pytest.raises(ArtifactError, match="being written by another process"):
                write_checkpoint(first, 9, SHAPES, CUTS)
            write_checkpoint(second, 5, SHAPES, CUTS)
    assert second.steps() == [3, 5]


def test_two_writers_of_one_step_spoil_nothing(url: str) -> None:
    """Files are named by their content: the manifest that came last counts, and its files are there."""
    directory = run(url)
    write_checkpoint(directory, 3, SHAPES, CUTS, b"a\n", seed=1)
    values = write_checkpoint(directory, 3, SHAPES, [{"a": (0, 12), "b": (0, 5)}], b"b\n", seed=2)
    found = directory.newest(silent)
    assert found is not None
    with directory.on_this_node():
        copy = directory.fetch(3)
        reader = CheckpointReader(copy.path, copy.manifest)
        assert torch.equal(reader.whole("weight", "b"), values["weight"]["b"])


def test_old_ones_go_with_their_files_and_what_killed_writers_left(url: str) -> None:
    directory = run(url, (2, 5, 6, 7, 8))
    Place(f"{url}/files").write("step-00000004-0123456789abcdef-rank-00000.safetensors", b"half")
    Place(f"{url}/files").write("step-00000009-0123456789abcdef-rank-00000.safetensors", b"on its way")
    directory.prune(2, also_every=5)
    assert directory.steps() == [5, 7, 8]
    assert {name[:13] for name in Place(f"{url}/files").names()} == {
        "step-00000005",
        "step-00000007",
        "step-00000008",
        "step-00000009",
    }


def test_back_to_an_earlier_one(url: str) -> None:
    directory = run(url, (3, 9))
    found = directory.verify(3)
    assert isinstance(found, Checkpoint)
    directory.roll_back(found, {"loop": {"step": 3}}, {"split": "roll_back"})
    again = directory.newest(silent)
    assert again is not None
    assert (again.step, again.manifest["loop"]) == (3, {"step": 3})
    with directory.on_this_node():
        assert directory.fetch(3).rows().endswith(b'{"split": "roll_back"}\n')


def test_what_people_can_follow(url: str) -> None:
    directory = run(url, (3,))
    directory.show(b"rows\n")
    directory.note_skipped(4, {"fault": "loss"})
    assert Place(url).read(METRICS) == b"rows\n"
    assert directory.skipped_at(4) == f"{url}/skipped/step-00000004.json"
    assert b"loss" in Place(f"{url}/skipped").read("step-00000004.json")
    assert directory.steps() == [3]
    directory.remove()
    assert Place(url).sizes() == {}


def test_a_run_that_was_removed_is_not_begun_anew_by_its_workers(url: str) -> None:
    directory = run(url, (3,))
    directory.remove()
    with pytest.raises(ArtifactError, match=r"run\.json has disappeared"):
        write_checkpoint(directory, 4, SHAPES, CUTS)
