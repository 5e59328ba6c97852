from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Tier
from pipeline.errors import ArtifactError
from pipeline.models.load import output_head
from pipeline.records import PairTokens
from pipeline.reference.compute import reference_rows
from pipeline.reference.reader import ReferenceReader
from pipeline.reference.shards import HEAD_FILE, ShardRow, read_head, shard_path, write_head, write_shard
from pipeline.risk.head import Head

CPU = torch.device("cpu")
WIDTH = 16


def pairs(count: int, seed: int = 0) -> list[PairTokens]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(1, 40) for _ in range(rng.randint(low, high))]

    made = []
    for number in range(count):
        prompt, chosen, rejected = ids(1, 6), ids(1, 12), ids(1, 12)
        content = hashlib.sha256(str((prompt, chosen, rejected)).encode()).hexdigest()
        made.append(PairTokens(f"row{number}", "group", prompt, chosen, rejected, content))
    return made


def compute(model: nn.Module, rows: list[PairTokens], tier: Tier = "hidden", **options: Any) -> list[ShardRow]:
    defaults = {"pad_id": 0, "batch_tokens": 64, "block_bytes": 2**16, "device": CPU}
    return reference_rows(model, rows, tier, **(defaults | options))


def write(directory: Path, rows: list[ShardRow], model: nn.Module | None, per_shard: int = 3) -> None:
    for index in range(0, len(rows), per_shard):
        write_shard(shard_path(directory, "train", index // per_shard), rows[index : index + per_shard])
    if model is not None:
        write_head(directory, output_head(model))


def read(directory: Path, rows: list[PairTokens], dtype: torch.dtype = torch.float32) -> ReferenceReader:
    return ReferenceReader(directory, "train", rows, device=CPU, dtype=dtype)


class TestCompute:
    def test_it_agrees_with_one_sequence_at_a_time(self, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(7)
        for pair, row in zip(rows, compute(model, rows), strict=True):
            assert (row.row_id, row.content) == (pair.row_id, pair.content)
            assert row.hidden is not None
            for ids, logp, hidden in zip((pair.chosen_ids, pair.rejected_ids), row.logps, row.hidden, strict=True):
                tokens = torch.tensor([[*pair.prompt_ids, *ids]])
                with torch.no_grad():
                    output = model(tokens, output_hidden_states=True)
                start = len(pair.prompt_ids) - 1
                logps = output.logits[0, start:-1].log_softmax(-1)
                expected = logps.gather(-1, torch.tensor(ids).unsqueeze(-1)).sum()
                assert logp == pytest.approx(expected.item(), rel=1e-5, abs=1e-4)
                assert hidden.shape == (len(ids), WIDTH)
                rebuilt = nn.functional.linear(hidden, output_head(model).weight).log_softmax(-1)
                torch.testing.assert_close(rebuilt, logps, rtol=1e-4, atol=1e-4)

    def test_the_scalar_tier_keeps_the_sums_only(self, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(5)
        scalar, hidden = compute(model, rows, "scalar"), compute(model, rows)
        assert [row.logps for row in scalar] == [row.logps for row in hidden]
        assert all(row.hidden is None for row in scalar)

    def test_computing_again_gives_the_same_bits(self, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(9)
        for one, other in zip(compute(model, rows), compute(model, rows), strict=True):
            assert one.logps == other.logps
            assert one.hidden is not None
            assert other.hidden is not None
            assert all(torch.equal(a, b) for a, b in zip(one.hidden, other.hidden, strict=True))

    @pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
    def test_the_size_of_batches_changes_rounding_only(
        self, make_model: Callable[..., nn.Module], batch_tokens: int
    ) -> None:
        model, rows = make_model(), pairs(9)
        expected = torch.tensor([row.logps for row in compute(model, rows)])
        found = torch.tensor([row.logps for row in compute(model, rows, batch_tokens=batch_tokens)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)

    def test_gradients_are_not_kept(self, make_model: Callable[..., nn.Module]) -> None:
        [row] = compute(make_model(), pairs(1))
        assert row.hidden is not None
        assert not any(piece.requires_grad for piece in row.hidden)


class TestShards:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_written_is_read_by_id_in_any_order(
        self, tmp_path: Path, make_model: Callable[..., nn.Module], dtype: torch.dtype
    ) -> None:
        model, rows = make_model().to(dtype), pairs(8)
        written = {row.row_id: row for row in compute(model, rows)}
        write(tmp_path, list(written.values()), model)
        reader = read(tmp_path, rows, dtype)
        assert reader.head is not None
        assert torch.equal(reader.head.weight, output_head(model).weight)
        for row_id in random.Random(1).sample(list(written), 8):
            stored = written[row_id]
            assert stored.hidden is not None
            assert reader.logps(row_id) == pytest.approx(stored.logps, rel=1e-6)
            for piece, expected in zip(reader.hidden(row_id), stored.hidden, strict=True):
                assert piece.dtype == dtype
                assert torch.equal(piece, expected)

    @pytest.mark.parametrize("bias", [None, torch.randn(5)])
    @pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.1, 30.0)])
    def test_the_head_keeps_what_is_done_to_the_logits(
        self, tmp_path: Path, bias: Tensor | None, scale: float, softcap: float | None
    ) -> None:
        written = Head(torch.randn(5, 3), bias, scale, softcap)
        write_head(tmp_path, written)
        found = read_head(tmp_path, CPU, torch.float32)
        assert torch.equal(found.weight, written.weight)
        assert (found.bias is None) == (bias is None)
        assert bias is None or torch.equal(found.bias, bias)  # type: ignore[arg-type]
        assert (found.scale, found.softcap) == (scale, softcap)

    def test_equal_heads_give_equal_bytes(self, tmp_path: Path) -> None:
        head = Head(torch.ones(5, 3), torch.ones(5), 0.1, 30.0)
        files = set()
        for number in range(8):
            (tmp_path / str(number)).mkdir()
            write_head(tmp_path / str(number), head)
            files.add((tmp_path / str(number) / HEAD_FILE).read_bytes())
        assert len(files) == 1

    def test_an_actor_may_compute_in_another_type_than_the_trainer(
        self, tmp_path: Path, make_model: Callable[..., nn.Module]
    ) -> None:
        model, rows = make_model(), pairs(2)
        write(tmp_path, compute(model, rows), model)
        reader = read(tmp_path, rows, torch.bfloat16)
        assert reader.head is not None
        assert reader.hidden("row0")[0].dtype == reader.head.weight.dtype == torch.bfloat16

    def test_equal_rows_give_equal_bytes(self, tmp_path: Path, make_model: Callable[..., nn.Module]) -> None:
        rows = compute(make_model(), pairs(3))
        rows[0] = dataclasses.replace(rows[0], row_id='a "quoted" ünïcode id\n')
        for number in range(8):
            write_shard(tmp_path / str(number), rows)
        assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1

    def test_the_scalar_tier_has_no_head(self, tmp_path: Path, make_model: Callable[..., nn.Module]) -> None:
        rows = pairs(4)
        write(tmp_path, compute(make_model(), rows, "scalar"), None)
        reader = read(tmp_path, rows)
        assert reader.head is None
        assert all(value < 0 for row in rows for value in reader.logps(row.row_id))

    def test_a_reader_may_ask_for_fewer_rows(self, tmp_path: Path, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(8)
        write(tmp_path, compute(model, rows), model)
        assert read(tmp_path, rows[5:]).logps("row7") == read(tmp_path, rows).logps("row7")

    def test_other_tokens_are_refused(self, tmp_path: Path, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(4)
        write(tmp_path, compute(model, rows), model)
        rows[2] = dataclasses.replace(rows[2], content="0" * 64)
        with pytest.raises(ArtifactError, match=r"other tokens of row 'row2'; remove the directory"):
            read(tmp_path, rows)

    def test_an_unknown_row_is_refused(self, tmp_path: Path, make_model: Callable[..., nn.Module]) -> None:
        model, rows = make_model(), pairs(4)
        write(tmp_path, compute(model, rows[:3]), model)
        with pytest.raises(ArtifactError, match="no row 'row3' in split 'train'"):
            read(tmp_path, rows)
        with pytest.raises(ArtifactError, match="in split 'validation'"):
            ReferenceReader(tmp_path, "validation", rows, device=CPU, dtype=torch.float32)
