"""A reference cache in a real object store over HTTP: the same files, resumed and read by ranges."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import ReferenceCache, manifest_files
from pipeline.reference.reader import OpenCache

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import passes
import tiny

PAIRS = 40


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> dict:
    root = tmp_path_factory.mktemp("local")
    options = passes.prepare(root, built_model, PAIRS)
    passes.run(options, root)
    return options


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_same_files_after_a_kill_and_read_by_ranges(local: dict, tmp_path: Path, s3_url: str) -> None:
    options = local | {"root": s3_url, "storage": str(tmp_path)}
    process = passes.start(options | {"max_actors": 1}, tmp_path)
    deadline = time.monotonic() + 60
    while "progress 4 " not in passes.log_of(process):
        assert process.poll() is None, passes.log_of(process)
        assert time.monotonic() < deadline, passes.log_of(process)
        time.sleep(0.02)
    passes.kill(process)

    output = passes.finish(passes.start(options, tmp_path), 200)
    assert "files are there" in output
    assert int(output.splitlines()[-1].split()[1]) < PAIRS // 2 + PAIRS // 20 + 1, "what was committed stays"
    place = Place(output.split()[-1])
    manifest = ReferenceCache(place).manifest()
    assert manifest is not None
    expected = {name: data for name, data in passes.contents(local).items() if name.endswith(".safetensors")}
    assert {one["file"]: place.read(one["file"]) for one in manifest_files(manifest)} == expected

    pairs = tiny.random_pairs(PAIRS, seed=1)
    [directory] = (path for path in Path(local["root"]).iterdir() if path.is_dir())
    ids = [pair.row_id for pair in pairs[3:11]]
    batches = []
    for where in (place, Place(str(directory))):
        cache = OpenCache(where, device=torch.device("cpu"), dtype=torch.float32)
        batches.append(cache.rows("train", pairs).collate([*ids, None]))
    for name, tensor in batches[1].items():
        assert torch.equal(batches[0][name], tensor), name

    shard = manifest["shards"][2]["file"]
    data = bytearray(place.read(shard))
    data[-5] ^= 4
    place.write(shard, bytes(data))
    assert list(ReferenceCache(place).verify().damaged) == [shard]
    rows = OpenCache(place, device=torch.device("cpu"), dtype=torch.float32).rows("train", pairs)
    with pytest.raises(ArtifactError, match=f"{shard} is damaged: row .* differs from its checksum"):
        rows.collate([pair.row_id for pair in pairs])
    assert passes.run(options, tmp_path)[1] == "1", "only the damaged file is computed again"
