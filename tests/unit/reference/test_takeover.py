"""A cache that takes rows over from others at the same root: on a disk, and in an object store over HTTP."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.digests import seal, unseal
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.donors import find_donors
from pipeline.reference.inspect import inspect
from pipeline.reference.version import READABLE

sys.path.insert(0, str(Path(__file__).parents[2]))
from caches import Growth, grow, random_pairs, read_rows

Make = Callable[..., nn.Module]
Grow = Callable[..., Growth]

OLD, NEW = random_pairs(10), random_pairs(20)[10:13]
MIXED = [*OLD[:4], NEW[0], *OLD[4:9], NEW[1], OLD[9], NEW[2]]
"""As in a table: the rows are in the order of a digest, so that new ones stand anywhere."""
HELD = random_pairs(5, seed=9)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    where = str(tmp_path / "references") if request.param == "local" else request.getfixturevalue("s3_url")
    return Place(where)


@pytest.fixture
def disk(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "references"))


@pytest.fixture
def make(tmp_path: Path, make_model: Make) -> Grow:
    model = make_model()

    def do(root: Place, key: str, train: Sequence[PairTokens], **options: Any) -> Growth:
        return grow(root, key, model, {"train": train, "validation": HELD}, tmp_path, **options)

    return do


def shards(place: Place) -> dict[str, bytes]:
    """Bytes of the shards by the digests in their names."""
    return {name.rsplit("-")[-1]: place.read(name) for name in place.names() if name.endswith(".safetensors")}


def assert_same(one: Growth, other: Growth, pairs: Sequence[PairTokens]) -> None:
    """All numbers that a trainer reads are equal, to the last bit."""
    ids = [pair.row_id for pair in pairs]
    batches = [read_rows(each.place, "train", pairs).collate(ids) for each in (one, other)]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_only_new_rows_pass_the_model(root: Place, make: Grow) -> None:
    first = make(root, "old", OLD)
    assert first.computed == {pair.row_id for pair in (*OLD, *HELD)}
    grown = make(root, "new", MIXED)
    assert grown.computed == {pair.row_id for pair in NEW}
    assert grown.manifest["origin"] == {"computed": 3, "taken_over": {"old": 15}}
    before, after = shards(first.place), shards(grown.place)
    assert all(after[digest] == data for digest, data in before.items()), "every file is taken as it is"
    assert len(after) == len(before) + 1, "the last file of ten rows is half full, and stays"
    assert_same(first, grown, OLD)
    assert read_rows(grown.place, "train", MIXED).logps(NEW[0].row_id) < (0.0, 0.0)
    assert ReferenceCache(grown.place).verify().whole
    said = dict(inspect(grown.place).rows)
    assert said["origin"] == "3 pairs computed for this cache, 15 taken over from old"
    assert said["files"].startswith(f"{len(after)} of {len(after)} whole")


def test_dropped_edited_moved_and_renamed_rows(root: Place, make: Grow, tmp_path: Path, make_model: Make) -> None:
    first = make(root, "old", OLD)
    edited = dataclasses.replace(OLD[1], chosen_ids=[5, 6], content="e" * 64)
    renamed = dataclasses.replace(OLD[2], row_id="another name")
    train = [OLD[0], edited, renamed, OLD[3], *OLD[5:]]
    grown = grow(root, "new", make_model(), {"train": train, "validation": [*HELD[1:], OLD[4]]}, tmp_path)
    assert grown.computed == {edited.row_id}
    assert grown.manifest["origin"] == {"computed": 1, "taken_over": {"old": 13}}
    for row_id, before in [(OLD[3].row_id, OLD[3]), ("another name", OLD[2])]:
        now = read_rows(grown.place, "train", train).collate([row_id])
        then = read_rows(first.place, "train", OLD).collate([before.row_id])
        assert all(torch.equal(now[name], then[name]) for name in now)
    moved = read_rows(grown.place, "validation", [OLD[4]]).logps(OLD[4].row_id)
    assert moved == read_rows(first.place, "train", OLD).logps(OLD[4].row_id)


@pytest.mark.parametrize(
    "tier", [{"hidden_rows": "8bit"}, {"tier": "topk", "top_k": 7, "top_mass": 0.9}, {"tier": "scalar"}]
)
def test_rows_of_every_tier_are_copied(disk: Place, make: Grow, tier: dict[str, Any]) -> None:
    first = make(disk, "old", OLD, **tier)
    wanted = [*OLD[:4], *OLD[5:]]
    grown = make(disk, "new", wanted, **tier)
    assert grown.computed == set()
    assert_same(first, grown, wanted)
    assert grown.manifest["tensors"] == first.manifest["tensors"]


def test_a_copy_of_all_rows_of_a_file_is_that_file(disk: Place, make: Grow) -> None:
    """But for the statistics in its header, whose sum is now one of rounded numbers."""
    first = make(disk, "old", OLD)
    as_old_format(Path(first.place.root))
    grown = make(disk, "new", OLD)
    assert not any(part.is_whole_file for part in grown.plan.parts if part.rows)
    again = make(Place(f"{disk.root}-2"), "new", OLD)
    assert again.computed
    assert tensors_of(grown.place) == tensors_of(again.place)
    statistics = [one.manifest["statistics"] for one in (grown, again)]
    assert statistics[0].pop("logps") == pytest.approx(statistics[1].pop("logps"))
    assert statistics[0].pop("lowest_logp") == pytest.approx(statistics[1].pop("lowest_logp"))
    assert statistics[0] == statistics[1]


def tensors_of(place: Place) -> list[bytes]:
    """What the files hold behind their headers."""
    files = [place.read(name) for name in place.names() if name.endswith(".safetensors")]
    return [data[8 + int.from_bytes(data[:8], "little") :] for data in files]


def test_statistics_of_copied_rows_add_up(disk: Place, make: Grow) -> None:
    make(disk, "old", OLD, hidden_rows="8bit")
    wanted = [*OLD[:4], *OLD[5:], *NEW]
    grown = make(disk, "new", wanted, hidden_rows="8bit").manifest["statistics"]
    fresh = make(Place(f"{disk.root}-2"), "new", wanted, hidden_rows="8bit").manifest["statistics"]
    for name in ("pairs", "response_tokens", "computed_tokens", "separate_tokens", "chosen_likelier"):
        assert grown[name] == fresh[name]
    assert grown["logps"] == pytest.approx(fresh["logps"], rel=1e-6)
    assert grown["lowest_logp"] == pytest.approx(fresh["lowest_logp"], rel=1e-6)
    assert grown["measured_positions"] > 0
    assert grown["kl_max"] > 0


def test_nothing_damaged_is_taken_over(root: Place, make: Grow) -> None:
    first = make(root, "old", OLD)
    names = [name for name in first.place.names() if name.startswith("train-")]
    whole_file, partly = names[0], names[3]
    for name, position in ((whole_file, -5), (partly, -5)):
        data = bytearray(first.place.read(name))
        data[position] ^= 2
        first.place.write(name, bytes(data))
    wanted = [*OLD[:9], *NEW]
    grown = make(root, "new", [*wanted, dataclasses.replace(OLD[9], content="e" * 64, chosen_ids=[3])])
    assert grown.computed == {pair.row_id for pair in (*OLD[:3], *NEW, OLD[9])}
    assert ReferenceCache(grown.place).verify().whole
    assert grown.manifest["origin"] == {"computed": 7, "taken_over": {"old": 11}}


def test_a_plan_whose_names_lead_out_fetches_nothing(root: Place, tmp_path: Path) -> None:
    """A plan may have been written by others: what it names is no path."""
    root.write("outside", b"x")
    (tmp_path / "scratch").mkdir()
    assert ReferenceCache(root).fetched("../outside", tmp_path / "scratch") is None
    assert not (tmp_path / "outside").exists()


def test_damage_after_a_file_was_taken_over(root: Place, make: Grow) -> None:
    """On a disk it is the donor's damage too, and its rows are computed; an object store has another copy."""
    make(root, "old", OLD)
    grown = make(root, "new", MIXED)
    [name] = [name for name in grown.place.names() if name.startswith("train-00001")]
    whole = grown.place.read(name)
    if root.is_local:
        with (Path(grown.place.root) / name).open("r+b") as file:
            file.seek(-5, 2)
            file.write(b"damage"[:5])
    else:
        grown.place.write(name, whole[:-1])
    assert list(ReferenceCache(grown.place).verify().damaged) == [name]
    again = make(root, "new", MIXED)
    assert again.computed == ({pair.row_id for pair in OLD[3:6]} if root.is_local else set())
    assert again.place.read(name) == whole, "the same rows in the same order: the same bytes"


def test_the_head_of_a_damaged_donor_is_computed(disk: Place, make: Grow) -> None:
    first = make(disk, "old", OLD)
    [head] = Path(first.place.root).glob("head-*")
    head.write_bytes(head.read_bytes()[:-1])
    grown = make(disk, "new", OLD[:6])
    assert not any(part.sources for part in grown.plan.parts if not part.rows)
    assert ReferenceCache(grown.place).verify().whole


def test_a_donor_that_is_removed_while_it_is_used(root: Place, make: Grow) -> None:
    """The plan is there, and one file of it; then the donor goes: what it alone had is computed."""
    first = make(root, "old", OLD)
    grown = make(root, "new", MIXED)
    for name in [
        name for name in grown.place.names() if name.startswith(("train-00001", "validation", "head", "mani"))
    ]:
        grown.place.remove(name)
    for name in first.place.names():
        first.place.remove(name)
    again = make(root, "new", MIXED)
    assert again.computed == {pair.row_id for pair in (*OLD[3:6], *HELD)}
    assert ReferenceCache(again.place).verify().whole
    expected = make(Place(f"{root.root}-2"), "new", OLD)
    assert_same(again, expected, OLD)  # files of the same rows in the same order: the same numbers


def test_a_pass_that_was_killed_goes_on_from_its_plan(root: Place, make: Grow) -> None:
    make(root, "old", OLD)
    undisturbed = make(root, "new", MIXED)
    files = {name: undisturbed.place.read(name) for name in undisturbed.place.names()}
    for killed_after in range(1, len(files), 2):
        for name in sorted(files)[killed_after:]:
            if name not in ("plan.json", "description.json"):
                undisturbed.place.remove(name)
        make(root, "between", [*OLD, *NEW])  # a donor that would make another plan
        make(root, "new", MIXED)
        now = {name: undisturbed.place.read(name) for name in undisturbed.place.names()}
        assert now == files
        between = root.below("between")
        for name in between.names():
            between.remove(name)


def test_a_lost_plan_costs_no_row_but_those_of_lost_files(disk: Place, make: Grow) -> None:
    first = make(disk, "old", OLD)
    grown = make(disk, "new", MIXED)
    directory = Path(grown.place.root)
    (directory / "plan.json").write_bytes(b"{}")
    shutil.rmtree(first.place.root)
    (directory / "manifest.json").unlink()
    lost = next(directory.glob("train-00001-*"))
    lost.unlink()
    kept = {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}
    again = make(disk, "new", MIXED)
    assert again.computed == {pair.row_id for pair in OLD[3:6]}
    assert kept.items() <= {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}.items()


def test_the_older_format_gives_its_rows(disk: Place, make: Grow) -> None:
    first = make(disk, "old", OLD)
    as_old_format(Path(first.place.root))
    assert inspect(first.place).sound
    grown = make(disk, "new", MIXED)
    assert grown.computed == {pair.row_id for pair in NEW}
    assert_same(first, grown, OLD)
    heads = [name for name in grown.place.names() if name.startswith("head")]
    assert len(heads) == 1


def test_what_is_no_donor(disk: Place, make: Grow, make_model: Make, tmp_path: Path) -> None:
    """Another pass, a directory that is no cache, a description that is damaged or of a later version, oneself."""
    make(disk, "other-tier", OLD, tier="scalar")
    good = make(disk, "good", OLD)
    for key in ("damaged", "later", "torn-header"):
        shutil.copytree(good.place.root, Path(disk.root) / key)
    (Path(disk.root) / "damaged" / "description.json").write_bytes(b"{}")
    later = Path(disk.root) / "later" / "description.json"
    later.write_bytes(seal(unseal(later.read_bytes()) | {"format": "ra-dpo-reference-9"}))
    (Path(disk.root) / "somebody's").mkdir()
    shutil.rmtree(good.place.root)
    for path in (Path(disk.root) / "torn-header").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    grown = make(disk, "new", OLD)
    assert grown.computed == {pair.row_id for pair in (*OLD, *HELD)}
    assert len(grown.said) == 2
    assert sorted(said.split(": ")[0].rsplit("/", 1)[-1] for said in grown.said) == ["damaged", "later"]


def test_the_newest_are_asked_first_and_not_too_many(disk: Place, make: Grow) -> None:
    make(disk, "k00", OLD)
    for number in range(1, 25):
        shutil.copytree(disk.below("k00").root, disk.below(f"k{number:02d}").root)
        os.utime(disk.below(f"k{number:02d}").root + "/description.json", (10**9 + number, 10**9 + number))
    os.utime(disk.below("k00").root + "/description.json", (10**9, 10**9))
    plan = make(disk, "k25", OLD).plan
    assert {source.cache for part in plan.parts for source in part.sources} == {"k24"}
    [header] = {one["pass"] for one in headers(disk.below("k25"))}
    assert find_donors(disk, "new", header, print)[:3] == ["k25", "k24", "k23"]
    assert len(find_donors(disk, "new", header, print)) == 20


def headers(place: Place) -> list[dict[str, str]]:
    """Metadata of the shards."""
    found = []
    for name in place.names():
        if name.endswith(".safetensors") and not name.startswith("head"):
            data = place.read(name)
            found.append(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"])
    return found


def as_old_format(directory: Path) -> None:
    """Rewrite a cache as the first version of the format had it: files that name their cache, split and first row."""
    renamed = {}
    for path in directory.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        metadata = header["__metadata__"] | {"format": READABLE[0]}
        if metadata.pop("pass", None) is not None:
            index = int(path.name.split("-")[1])
            metadata |= {"key": directory.name, "split": path.name.split("-")[0], "first_row": str(3 * index)}
        text = json.dumps(header | {"__metadata__": metadata}, sort_keys=True, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        written = len(text).to_bytes(8, "little") + text + data[start:]
        stem = path.name.rsplit("-", 1)[0]
        name = f"{stem}-{hashlib.sha256(written).hexdigest()[:16]}.safetensors"
        path.unlink()
        (directory / name).write_bytes(written)
        renamed[path.name] = {"file": name, "bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    for document in ("description.json", "manifest.json"):
        value = unseal((directory / document).read_bytes()) | {"format": READABLE[0]}
        if document == "manifest.json":
            value["shards"] = [one | renamed[one["file"]] for one in value["shards"]]
            value["head"] = renamed[value["head"]["file"]]
            del value["origin"]
        (directory / document).write_bytes(seal(value))
    (directory / "plan.json").unlink()
