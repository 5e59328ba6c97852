from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ArtifactError, ModelError
from pipeline.models.load import output_head
from pipeline.places import Place
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.layout import write_head
from pipeline.reference.reader import OpenCache, read_head
from pipeline.reference.shard_file import ShardFile
from pipeline.risk.block import NO_TOKEN
from pipeline.risk.head import Head, HiddenReference, ScalarReference, TopKReference

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
from caches import CPU, TOKENIZER, random_pairs, read_rows, write_cache
from test_compute import compute

Make = Callable[..., nn.Module]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_come_back_bit_for_bit_in_any_order(tmp_path: Path, make_model: Make, dtype: torch.dtype) -> None:
    model, pairs = make_model().to(dtype), random_pairs(8)
    place = write_cache(tmp_path, model, {"train": pairs})
    rows = read_rows(place, "train", pairs, dtype)
    order = random.Random(1).sample(range(8), 8)
    # The same shards: equal batches, equal bits.
    written = [row for start in range(0, 8, 3) for row in compute(model, pairs[start : start + 3])]
    batch = rows.collate([pairs[i].row_id for i in order])
    expected = [written[i].tensors["hidden"][side] for side in (0, 1) for i in order]
    assert batch["ref_hidden"].dtype == dtype
    assert torch.equal(batch["ref_hidden"], torch.cat(expected))
    logps = [written[i].logps[side] for side in (0, 1) for i in order]
    assert batch["ref_logps"].tolist() == pytest.approx(logps, rel=1e-6)
    record = rows.record(batch)
    assert isinstance(record, HiddenReference)
    assert torch.equal(record.head.weight, output_head(model).weight)
    assert rows.has_law


def test_padding_has_no_positions(tmp_path: Path, make_model: Make) -> None:
    model, pairs = make_model(), random_pairs(4)
    for tier in ("hidden", "topk", "scalar"):
        rows = read_rows(write_cache(tmp_path / tier, model, {"train": pairs}, tier=tier), "train", pairs)
        alone, padded, nothing = (rows.collate(ids) for ids in (["row1"], ["row1", None], [None, None]))
        assert padded["ref_logps"][1::2].tolist() == [0.0, 0.0]
        for name in alone:
            if name != "ref_logps":
                assert torch.equal(alone[name], padded[name])
                assert len(nothing[name]) == 0


def test_8_bit_rows_are_near(tmp_path: Path, make_model: Make) -> None:
    model, pairs = make_model(), random_pairs(6)
    exact = read_rows(write_cache(tmp_path / "a", model, {"train": pairs}), "train", pairs)
    place = write_cache(tmp_path / "b", model, {"train": pairs}, hidden_rows="8bit")
    ids = [pair.row_id for pair in pairs]
    one, other = exact.collate(ids)["ref_hidden"], read_rows(place, "train", pairs).collate(ids)["ref_hidden"]
    assert not torch.equal(one, other)
    torch.testing.assert_close(other, one, rtol=0, atol=float(one.abs().max()) / 127)
    manifest = ReferenceCache(place).manifest()
    assert manifest is not None
    assert 0 < manifest["statistics"]["kl_max"] < 0.05


def test_top_k_is_rectangular(tmp_path: Path, make_model: Make) -> None:
    model, pairs = make_model(), random_pairs(5)
    place = write_cache(tmp_path, model, {"train": pairs}, tier="topk", top_k=20, top_mass=0.6)
    rows = read_rows(place, "train", pairs)
    batch = rows.collate(["row4", "row0"])
    record = rows.record(batch)
    assert isinstance(record, TopKReference)
    assert rows.has_law
    expected = compute(model, pairs[3:5], tier="topk", top_k=20, top_mass=0.6)[1].tensors
    counts = (record.ids != NO_TOKEN).sum(-1)
    assert torch.equal(torch.isneginf(record.log_probs), record.ids == NO_TOKEN)
    assert record.ids.shape[1] == int(counts.max())
    length = len(pairs[4].chosen_ids)
    assert counts[:length].tolist() == expected["counts"][0].tolist()
    filled = record.ids[:length][record.ids[:length] != NO_TOKEN]
    assert filled.tolist() == expected["ids"][0].tolist()


def test_the_scalar_tier(tmp_path: Path, make_model: Make) -> None:
    pairs = random_pairs(4)
    rows = read_rows(write_cache(tmp_path, make_model(), {"train": pairs}, tier="scalar"), "train", pairs)
    assert not rows.has_law
    assert isinstance(rows.record(rows.collate(["row0"])), ScalarReference)
    assert all(value < 0 for pair in pairs for value in rows.logps(pair.row_id))


def test_an_object_store_over_http_gives_the_same_rows(tmp_path: Path, make_model: Make, s3_url: str) -> None:
    pairs = random_pairs(8)
    places = [write_cache(root, make_model(), {"train": pairs}) for root in (tmp_path / "cache", s3_url)]
    ids = ["row6", None, "row0", "row3"]
    here, there = (read_rows(place, "train", pairs).collate(ids) for place in places)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    manifests = [ReferenceCache(place).manifest() for place in places]
    assert manifests[0] == manifests[1]
    name = next(name for name in places[1].names() if name.startswith("train-00001"))
    data = bytearray(places[1].read(name))
    data[-3] ^= 16
    places[1].write(name, bytes(data))
    assert list(ReferenceCache(places[1]).verify().damaged) == [name]
    with pytest.raises(ArtifactError, match=f"{name} is damaged: row 'row5' differs from its checksum"):
        read_rows(places[1], "train", pairs).collate([pair.row_id for pair in pairs])


def test_any_safetensors_library_reads_a_shard(tmp_path: Path, make_model: Make) -> None:
    pairs = random_pairs(3)
    write_cache(tmp_path, make_model(), {"train": pairs})
    [path] = tmp_path.glob("train-*.safetensors")
    tensors = load_file(path)
    lengths = [len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    assert tensors["offsets"].diff().tolist() == lengths
    assert tensors["hidden"].shape == (sum(lengths), 16)


def test_equal_rows_give_equal_files(tmp_path: Path, make_model: Make) -> None:
    pairs = random_pairs(4)
    pairs[0] = dataclasses.replace(pairs[0], row_id='a "quoted" ünïcode id\n')
    for number in range(4):
        write_cache(tmp_path / str(number), make_model(), {"train": pairs})
    files = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir() if path.is_file()}
    for number in range(1, 4):
        assert files == {p.name: p.read_bytes() for p in (tmp_path / str(number)).iterdir() if p.is_file()}


@pytest.mark.parametrize("bias", [None, torch.randn(5)])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.1, 30.0)])
def test_the_head_keeps_what_is_done_to_the_logits(
    tmp_path: Path, bias: torch.Tensor | None, scale: float, softcap: float | None
) -> None:
    written = Head(torch.randn(5, 3), bias, scale, softcap)
    write_head(tmp_path / "head", written)
    found = read_head(ShardFile(Place(str(tmp_path)), "head"), CPU, torch.float32)
    assert torch.equal(found.weight, written.weight)
    assert (found.bias is None) == (bias is None)
    assert bias is None or torch.equal(found.bias, bias)  # type: ignore[arg-type]
    assert (found.scale, found.softcap) == (scale, softcap)


class TestRefusals:
    def test_other_tokens(self, tmp_path: Path, make_model: Make) -> None:
        pairs = random_pairs(4)
        place = write_cache(tmp_path, make_model(), {"train": pairs})
        pairs[2] = dataclasses.replace(pairs[2], content="0" * 64)
        with pytest.raises(ArtifactError, match=r"other tokens of row 'row2'; remove the directory"):
            read_rows(place, "train", pairs)

    def test_an_unknown_row(self, tmp_path: Path, make_model: Make) -> None:
        pairs = random_pairs(4)
        place = write_cache(tmp_path, make_model(), {"train": pairs[:3]})
        for split in ("train", "validation"):
            with pytest.raises(ArtifactError, match=rf"no row 'row\d' in split '{split}'"):
                read_rows(place, split, pairs)

    def test_no_cache(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="no finished reference cache"):
            OpenCache(Place(str(tmp_path)), device=CPU, dtype=torch.float32)

    def test_another_policy(self, tmp_path: Path, make_model: Make) -> None:
        place = write_cache(tmp_path, make_model(), {"train": random_pairs(2)})
        cache = OpenCache(place, device=CPU, dtype=torch.float32)
        cache.check_policy(TOKENIZER, 40)
        with pytest.raises(ModelError, match="another tokenizer than the policy's"):
            cache.check_policy("8" * 64, 40)
        with pytest.raises(ModelError, match="vocabulary of 40, the policy one of 48"):
            cache.check_policy(TOKENIZER, 48)

    def test_a_shard_cut_short(self, tmp_path: Path, make_model: Make) -> None:
        pairs = random_pairs(2)
        place = write_cache(tmp_path, make_model(), {"train": pairs})
        [path] = tmp_path.glob("train-*.safetensors")
        whole = path.read_bytes()
        for size in (0, 5, 100, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ArtifactError, match=r"train-00000-\w+.safetensors is damaged: .*only this file anew"):
                read_rows(place, "train", pairs)

    @pytest.mark.parametrize("tier", ["hidden", "topk"])  # nothing reads the scalar tier's offsets
    def test_a_flipped_byte_of_a_row_is_found_when_it_is_read(
        self, tmp_path: Path, make_model: Make, tier: str
    ) -> None:
        pairs = random_pairs(3)
        place = write_cache(tmp_path, make_model(), {"train": pairs}, tier=tier)
        [path] = tmp_path.glob("train-*.safetensors")
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        rng = random.Random(0)
        for position in rng.sample(range(start, len(data)), 30):
            flipped = bytearray(data)
            flipped[position] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises((ArtifactError, ValueError, RuntimeError)):
                read_rows(place, "train", pairs).collate([pair.row_id for pair in pairs])
