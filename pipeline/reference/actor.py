"""The Ray actor that hosts the frozen reference and writes one file of its cache at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.data.tables import read_numbered
from pipeline.errors import DataError, ModelError
from pipeline.models.load import check_head, context_tokens, load_model, load_tokenizer, output_head, torch_dtype
from pipeline.models.packing import can_pack
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache, StoredFile
from pipeline.reference.compute import reference_rows
from pipeline.reference.layout import ShardHeader, write_head, write_shard
from pipeline.reference.plan import HEAD, Part, numbers_in
from pipeline.reference.statistics import shard_statistics
from pipeline.storage import local_copy


@dataclass(frozen=True)
class PassSpec:
    """What every actor of a pass is given: plain data, for it crosses process borders."""

    run: dict[str, Any]
    """`RunConfig` as JSON."""
    model_dir: str
    tokens_dir: str
    place: str
    """Where the cache is."""
    pass_key: str
    """See `pipeline.reference.key`."""


@dataclass(frozen=True)
class Written:
    """A file of the cache, and what this actor did for it."""

    file: StoredFile
    computed_rows: int
    """Pairs that went through the model; none when the file was there."""


class ReferenceActor:
    """Refuses a model whose logits its head does not reproduce before it computes anything."""

    def __init__(self, spec: PassSpec) -> None:
        self._spec = spec
        self._run = run = RunConfig.model_validate(spec.run)
        self._device = torch.device("cuda" if run.cluster.gpus_per_actor > 0 else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(run.reference.threads)
        model_dir = local_copy(spec.model_dir)
        self._model = load_model(model_dir, torch_dtype(run.model.dtype)).to(self._device)
        self._head = output_head(self._model)
        tokenizer = load_tokenizer(model_dir)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        probe = torch.arange(8, device=self._device).unsqueeze(0) % self._head.num_tokens
        check_head(self._model, probe, torch.ones_like(probe))
        self._context = context_tokens(model_dir)
        longest = run.data.max_prompt_tokens, run.data.max_response_tokens
        self._packed = can_pack(self._model, self._pad_id, self._device, *longest)
        self._cache = ReferenceCache(Place(spec.place))

    def compute(self, part: Part) -> Written:
        """Compute and commit a file, unless an actor that died before it could say so has done it."""
        piece = part.piece
        stored = self._cache.committed(piece)
        if stored is not None:
            return Written(stored, 0)
        with self._cache.place.scratch() as scratch:
            local = scratch / f"{piece.stem}.safetensors"
            computed = 0
            if piece.split == HEAD:
                write_head(local, self._head)
            else:
                computed = self._write_shard(local, part)
            return Written(self._cache.commit(piece, local), computed)

    def _write_shard(self, local: Path, part: Part) -> int:
        options = self._run.reference
        path = local_copy(self._spec.tokens_dir) / f"{part.piece.split}.parquet"
        pairs = read_numbered(path, PairTokens, numbers_in(part.rows))
        self._check(pairs)
        rows, error = reference_rows(
            self._model, pairs, options, pad_id=self._pad_id, device=self._device, packed=self._packed
        )
        header = ShardHeader(self._spec.pass_key, self._head.num_tokens)
        write_shard(local, header, rows, shard_statistics(pairs, rows, error, self._packed).as_dict())
        return len(rows)

    def _check(self, pairs: list[PairTokens]) -> None:
        for pair in pairs:
            longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
            if longest > self._context:
                raise DataError(
                    f"row {pair.row_id!r} has {longest:,} tokens, more than the reference's context of "
                    f"{self._context:,}: lower data.max_prompt_tokens or data.max_response_tokens"
                )
            largest = max(max(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
            if largest >= self._head.num_tokens:
                raise ModelError(
                    f"row {pair.row_id!r} holds token {largest}, but the reference's vocabulary ends at "
                    f"{self._head.num_tokens - 1}: its tokenizer belongs to another model"
                )
