from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.align import AlignmentRun
from pipeline.artifacts import Store
from pipeline.config import RunConfig
from pipeline.errors import ArtifactError
from pipeline.fitting import checkpoints_there_bytes, find_room, require_room
from pipeline.plan import cost
from pipeline.room import Room
from pipeline.storage import open_storage
from pipeline.survey import model_shape, token_counts


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """60 pairs over 20 prompts."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n % 20}: ", "chosen": f"Good answer {n}.", "rejected": f"Bad {n}."} for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def kept_at(pairs_file: Path, model: Path, root: Path | str | None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": str(pairs_file), "max_prompt_tokens": 20, "max_response_tokens": 40},
            "model": {"path": str(model)},
            "reference": {"root": None if root is None else str(root)},
            "evaluation": {"max_new_tokens": 44},
        }
    )


def test_room_is_looked_for_where_the_bytes_go(pairs_file: Path, built_model: Path, tmp_path: Path) -> None:
    storage = tmp_path / "not" / "there"

    def room(root: Path | str | None) -> Room:
        return find_room(kept_at(pairs_file, built_model, root), open_storage(str(storage)))

    beside = room(None)
    assert beside.shared
    assert beside.storage_free == beside.references_free
    assert beside.storage_free is not None
    for root in (tmp_path / "caches", f"file://{tmp_path}/caches"):
        found = room(root)
        assert (found.storage, found.references, found.shared) == (str(storage), str(tmp_path / "caches"), True)
        assert found.references_free is not None
    remote = room("memory://caches")
    assert (remote.references, remote.references_free, remote.shared) == ("memory://caches", None, False)
    assert remote.storage_free is not None
    with pytest.raises(ArtifactError, match=r"'nosuch://caches' cannot be used.*--reference.root"):
        room("nosuch://caches")
    with pytest.raises(ArtifactError, match=r"reference.root .*pairs.jsonl/x cannot be written: Not a directory"):
        room(pairs_file / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_another_disk_is_judged_by_itself(
    pairs_file: Path, built_model: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """Models go to the storage, the reference to a file system of 32 kB that holds its smallest tier alone."""
    disk = small_disk("size=32k")
    run = kept_at(pairs_file, built_model, disk / "caches")
    room = find_room(run, open_storage(str(tmp_path / "runs")))
    assert (room.references_free, room.shared) == (32 * 1024, False)

    planned = AlignmentRun("mine", run, open_storage(str(tmp_path / "runs"))).planned
    store = Store(str(tmp_path / "runs"))
    counts = token_counts(run, planned, store, built_model)
    assert counts is not None

    def require(run: RunConfig, **known: Any) -> None:
        require_room(run, planned, store, open_storage(str(tmp_path / "runs")), counts, built_model, **known)

    costs = cost(run, counts, model_shape(run.model, built_model), planned)
    assert costs.reference_to_write_bytes > 32 * 1024
    with pytest.raises(ArtifactError, match=r"reference.root .*caches has 32.8 kB free, but the run would write ") as e:
        require(run)
    assert "fits there" in str(e.value)
    require(run, reference_there_bytes=costs.reference_to_write_bytes)
    dpo = run.model_copy(update={"loss": run.loss.model_copy(update={"method": "dpo"})})
    with pytest.raises(ArtifactError, match=r"`--reference.tier scalar` \(needs about \d\d?\.\d kB\)$"):
        require(dpo)
    require(dpo.model_copy(update={"reference": run.reference.model_copy(update={"tier": "scalar"})}))
    # Without counts only the models are judged, and they go elsewhere.
    require_room(run, planned, store, open_storage(str(tmp_path / "runs")), None, built_model)


def test_a_committed_stage_needs_no_room(
    pairs_file: Path, built_model: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    run = kept_at(pairs_file, built_model, small_disk("size=16k"))
    planned = AlignmentRun("mine", run, open_storage(str(tmp_path / "runs"))).planned
    store = Store(str(tmp_path / "runs"))
    counts = token_counts(run, planned, store, built_model)
    with pytest.raises(ArtifactError, match=r"reference.root"):
        require_room(run, planned, store, open_storage(str(tmp_path / "runs")), counts, built_model)
    with store.stage("reference", planned["reference"].key, {}) as staging:
        (staging.path / "cache.json").write_text("{}")
    require_room(run, planned, store, open_storage(str(tmp_path / "runs")), counts, built_model)


def test_a_killed_training_goes_on_beside_what_it_has_left(
    pairs_file: Path, built_model: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """On a disk with room for a model, its registered copies and one more checkpoint, two lie there already."""
    caches = tmp_path / "caches"
    run = kept_at(pairs_file, built_model, caches)
    parameters = model_shape(run.model, built_model).parameters
    spare = 50_000  # for directories and the rounding to pages
    storage = small_disk(f"size={(3 * 4 + 3 * 12) * parameters + spare}")
    align = AlignmentRun("mine", run, open_storage(str(storage)))
    store, directory = Store(str(storage)), Path(align.run_directory("align"))
    for step in (10, 20):
        (directory / f"step-{step:08d}").mkdir(parents=True)
        (directory / f"step-{step:08d}" / "rank-00000.safetensors").write_bytes(b"x" * 12 * parameters)
    assert checkpoints_there_bytes(open_storage(str(storage)), align.planned, ["align"]) == 2 * 12 * parameters
    assert checkpoints_there_bytes(open_storage(str(storage)), align.planned, ["report"]) == 0
    require_room(run, align.planned, store, open_storage(str(storage)), None, built_model)
    directory.rename(storage / "checkpoints" / "of-another-run")
    with pytest.raises(ArtifactError, match=r"checkpoints while training"):
        require_room(run, align.planned, store, open_storage(str(storage)), None, built_model)


def test_a_url_is_judged_by_this_node_s_copies(
    pairs_file: Path, built_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference caches and checkpoints take none of its disk."""
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    run, storage = kept_at(pairs_file, built_model, None), open_storage(f"memory://{tmp_path.name}")
    room = find_room(run, storage)
    assert (room.storage, room.references, room.references_free) == (str(storage.here), storage.at("references"), None)
    assert room.storage_free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    planned = AlignmentRun("mine", run, storage).planned
    assert "base" in planned, "other nodes do not have the model's directory"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match=r"the scratch directory .* has .* free.*set RA_DPO_SCRATCH"):
        require_room(run, planned, storage.store(create=False), storage, None, built_model)
