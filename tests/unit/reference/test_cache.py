from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from torch import nn

from pipeline.digests import seal, unseal
from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.cover import fixed_parts
from pipeline.reference.inspect import inspect
from pipeline.reference.location import check_cache
from pipeline.reference.manifest import contents
from pipeline.reference.plan import HEAD, Part, Piece, Plan

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import PASS, random_pairs, write_cache, write_piece

from pipeline.config import ReferenceConfig

Make = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_model: Make) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    write_cache(directory, make_model(), {"train": random_pairs(7), "validation": random_pairs(2)})
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "cache"))


PLAN = Plan(tuple(fixed_parts({"train": 7, "validation": 2}, 3, has_head=True)))
CONTENTS = {
    "train": [pair.content for pair in random_pairs(7)],
    "validation": [pair.content for pair in random_pairs(2)],
}


def test_a_finished_cache_is_whole(finished: Path) -> None:
    found = ReferenceCache(Place(str(finished))).verify()
    assert found.whole
    assert found.missing(PLAN) == []
    check_cache(str(finished))


def flips(path: Path, positions: Iterable[int], rng: random.Random) -> Iterator[int]:
    """Yields each position with one bit of that byte flipped in the file, which is as it was at the end."""
    data = path.read_bytes()
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        yield position
    path.write_bytes(data)


def test_every_single_flipped_byte_is_found(copy: Path) -> None:
    """60 bytes of every file against the whole cache, and every byte of the manifest against its own digest."""
    files = sorted(path for path in copy.iterdir() if path.is_file())
    assert {path.name.split("-")[0] for path in files} == {
        "train", "validation", "head", "manifest.json", "description.json", "plan.json",
    }  # fmt: skip
    rng, cache = random.Random(0), ReferenceCache(Place(str(copy)))
    for path in files:
        size = path.stat().st_size
        for number, position in enumerate(flips(path, rng.sample(range(size), 60), rng)):
            found = cache.verify()
            if path.name == "description.json":
                with pytest.raises(ArtifactError, match=r"description.json is damaged"):
                    cache.description()
            elif path.name == "plan.json":
                assert cache.plan() is None
                assert found.whole, "only a pass reads it"
            else:
                assert list(found.damaged) == [path.name], f"byte {position} of {path.name}"
                if number % 10 == 0:  # it verifies the whole cache once more
                    with pytest.raises(ArtifactError, match=path.name):
                        check_cache(str(copy))
    for _ in flips(copy / "manifest.json", range((copy / "manifest.json").stat().st_size), rng):
        with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
            cache.manifest()


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_file_cut_short_or_gone_is_found(copy: Path, size: int) -> None:
    path = next(copy.glob("train-00001-*"))
    path.write_bytes(path.read_bytes()[:size])
    assert list(ReferenceCache(Place(str(copy))).verify().damaged) == [path.name]
    path.unlink()
    assert ReferenceCache(Place(str(copy))).verify().damaged == {path.name: "is missing"}


def test_only_what_is_damaged_is_removed_and_to_do(copy: Path) -> None:
    path = next(copy.glob("train-00001-*"))
    before = {other.name: other.stat().st_mtime_ns for other in copy.glob("*.safetensors")}
    path.write_bytes(b"x" + path.read_bytes()[1:])
    cache = ReferenceCache(Place(str(copy)))
    cache.remove(cache.verify().damaged)
    assert cache.manifest() is None
    found = cache.verify()
    assert found.damaged == {}
    assert found.missing(PLAN) == [Part(Piece("train", 1), ((3, 6),))]
    del before[path.name]
    assert before == {other.name: other.stat().st_mtime_ns for other in copy.glob("*.safetensors")}


def test_a_damaged_manifest_leaves_the_shards_in_use(copy: Path) -> None:
    (copy / "manifest.json").write_text("{}")
    cache = ReferenceCache(Place(str(copy)))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged .* makes it anew from the shards"):
        cache.manifest()
    found = cache.verify()
    assert found.missing(PLAN) == []


@pytest.mark.parametrize("name", ["manifest.json", "description.json"])
def test_another_version_is_refused_and_left_alone(copy: Path, name: str) -> None:
    document = unseal((copy / name).read_bytes())
    (copy / name).write_bytes(seal(document | {"format": "ra-dpo-reference-9"}))
    cache = ReferenceCache(Place(str(copy)))
    with pytest.raises(ArtifactError, match=r"of another version \('ra-dpo-reference-9', this one reads"):
        cache.manifest() if name == "manifest.json" else cache.description()
    assert len(list(copy.glob("*.safetensors"))) == 5


def test_a_piece_is_committed_once(tmp_path: Path, make_model: Make) -> None:
    cache = ReferenceCache(Place(str(tmp_path)))
    pairs, options = random_pairs(4), ReferenceConfig(rows_per_shard=3)
    assert cache.committed(Piece("train", 1)) is None
    stored = write_piece(cache, Part(Piece("train", 1), ((3, 4),)), make_model(), pairs, options)
    assert cache.committed(Piece("train", 1)) == stored
    assert stored.name == f"train-00001-{stored.sha256[:16]}.safetensors"
    (tmp_path / stored.name).write_bytes(b"torn")
    assert cache.committed(Piece("train", 1)) is None


def test_a_file_of_another_cache_is_refused(copy: Path) -> None:
    cache = ReferenceCache(Place(str(copy)))
    files = cache.verify().files
    with pytest.raises(ArtifactError, match="is of another cache"):
        contents(cache, "f" * 32, PLAN, files, CONTENTS)
    files[Piece("train", 0)], files[Piece("train", 1)] = files[Piece("train", 1)], files[Piece("train", 0)]
    with pytest.raises(ArtifactError, match=r"holds other rows than plan.json says"):
        contents(cache, PASS, PLAN, files, CONTENTS)


def test_more_shards_than_five_digits_can_number(tmp_path: Path, make_model: Make) -> None:
    cache = ReferenceCache(Place(str(tmp_path)))
    stored = write_piece(cache, Part(Piece(HEAD)), make_model(), [], ReferenceConfig())
    (tmp_path / stored.name).rename(tmp_path / stored.name.replace("head", "train-123456"))
    assert set(cache.verify().files) == {Piece("train", 123456)}


class TestInspect:
    def test_it_says_what_the_cache_is(self, finished: Path) -> None:
        found = inspect(Place(str(finished)))
        said = dict(found.rows)
        assert found.sound
        assert said["model"] == f"tiny (weights {'5' * 16})"
        assert said["data"].startswith("random: train 7 pairs")
        assert said["state"] == "finished"
        assert said["files"].startswith("5 of 5 whole")
        size = sum(path.stat().st_size for path in finished.glob("*.safetensors"))
        assert f"{size:,} bytes" in said["files"]

    def test_an_unfinished_pass(self, copy: Path) -> None:
        (copy / "manifest.json").unlink()
        next(copy.glob("head-*")).unlink()
        found = inspect(Place(str(copy)))
        assert not found.sound
        assert dict(found.rows)["state"] == "unfinished"
        assert dict(found.rows)["files"].startswith("4 of 5 whole")

    def test_damage_is_listed(self, copy: Path) -> None:
        path = next(copy.glob("validation-*"))
        path.write_bytes(path.read_bytes()[:-1])
        (copy / "manifest.json").write_text(json.dumps({"format": 1}))
        assert set(inspect(Place(str(copy))).damaged) == {path.name, "manifest.json"}

    def test_no_cache(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no reference cache in"):
            inspect(Place(str(tmp_path)))
