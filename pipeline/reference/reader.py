"""Reading a reference cache at the trainer: by content, only the rows that are asked for, each checked.

A row is found by the sha256 of its tokens, whatever it is called: a file may come from a cache of other data, in which
the same tokens had another id. A pair gets what was computed for its very tokens, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ArtifactError, ModelError
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.cache import ReferenceCache
from pipeline.reference.compress import expand
from pipeline.reference.shard_file import Maps, ShardFile
from pipeline.reference.stored import StoredRow, StoredShard
from pipeline.risk.block import NO_TOKEN
from pipeline.risk.head import Head, HiddenReference, Reference, ScalarReference, TopKReference

_READERS = 8
"""Requests to an object store at once."""


class OpenCache:
    """A finished cache; its head is read once, however many splits are.

    Args:
        device: where the head is put.
        dtype: of the head and the hidden states.

    Raises:
        ArtifactError: when there is no finished cache at ``place``.
    """

    def __init__(self, place: Place, *, device: torch.device, dtype: torch.dtype) -> None:
        manifest = ReferenceCache(place).manifest()
        if manifest is None:
            raise ArtifactError(f"there is no finished reference cache in {place.root}; run the job again")
        self.manifest: Mapping[str, Any] = manifest
        self._place, self._dtype, self._maps = place, dtype, Maps(place)
        # Requests of an object store wait for each other otherwise; a local disk is only asked for mapped pages.
        self._map: Callable[..., Iterable[Any]] = map
        if not place.is_local:
            self._map = ThreadPoolExecutor(_READERS, thread_name_prefix="reference").map
        self.head: Head | None = None
        if manifest["head"]:
            self.head = read_head(ShardFile(place, manifest["head"]["file"]), device, dtype)

    def check_policy(self, tokenizer: str, vocab_size: int) -> None:
        """Refuse a policy that does not speak the reference's tokens.

        Args:
            tokenizer: digest of its tokenizer's files (`pipeline.models.contents.tokenizer_contents`).
            vocab_size: rows of its output head.

        Raises:
            ModelError: when they differ from the reference's.
        """
        made_from = self.manifest["made_from"]
        if made_from["tokenizer"] != tokenizer:
            raise ModelError(
                f"the reference cache {self._place.root} was computed with another tokenizer than the policy's "
                f"(digests {made_from['tokenizer'][:12]} and {tokenizer[:12]}): align a policy that starts from the "
                "reference's model directory, or compute the reference again"
            )
        if self.manifest["vocab_size"] != vocab_size:
            raise ModelError(
                f"the reference of the cache {self._place.root} has a vocabulary of {self.manifest['vocab_size']:,}, "
                f"the policy one of {vocab_size:,}: they must be the same"
            )

    def rows(self, split: str, pairs: Sequence[PairTokens]) -> CachedRows:
        """What the reference says about some pairs of a split.

        Raises:
            ArtifactError: when a pair is not in the cache, or was computed for other tokens.
        """
        names = [one["file"] for one in self.manifest["shards"] if one["split"] == split]
        shards = list(self._map(lambda name: StoredShard(ShardFile(self._place, name, self._maps)), names))
        return CachedRows(self._place.root, split, shards, pairs, self.head, self._dtype, self._map)


class CachedRows:
    """Rows of one split. Safe to use from a thread beside the one that trains."""

    def __init__(
        self,
        root: str,
        split: str,
        shards: Sequence[StoredShard],
        pairs: Sequence[PairTokens],
        head: Head | None,
        dtype: torch.dtype,
        map_: Callable[..., Iterable[Any]],
    ) -> None:
        self.head = head
        self._dtype = dtype
        self._map = map_
        by_content: dict[str, tuple[StoredShard, int]] = {}
        for shard in shards:
            for number, content in enumerate(shard.contents):
                by_content.setdefault(content, (shard, number))
        self._where: dict[str, tuple[StoredShard, int]] = {}
        """By the id that a pair has in these data."""
        self._has_top_k = any("ids" in shard.payload for shard in shards)
        for pair in pairs:
            found = by_content.get(pair.content)
            if found is not None:
                self._where[pair.row_id] = found
            elif any(pair.row_id in shard.row_ids for shard in shards):
                raise ArtifactError(
                    f"the reference cache {root} was computed for other tokens of row {pair.row_id!r}; "
                    "remove the directory and run the job again"
                )
            else:
                raise ArtifactError(
                    f"the reference cache {root} has no row {pair.row_id!r} in split {split!r}; run the job again"
                )

    @property
    def has_law(self) -> bool:
        """Whether the reference's distribution is known at every position, exactly or as a lower bound."""
        return self.head is not None or self._has_top_k

    def collate(self, row_ids: Sequence[str | None]) -> dict[str, Tensor]:
        """The reference's part of a batch, chosen responses first; None is padding, which has no positions."""
        found = list(self._map(lambda row_id: None if row_id is None else self._read(row_id), row_ids))
        both = [(0.0, 0.0) if one is None else one.logps for one in found]
        batch = {"ref_logps": torch.tensor([chosen for chosen, _ in both] + [rejected for _, rejected in both])}
        rows = [one for one in found if one is not None]
        parts = [one.chosen for one in rows] + [one.rejected for one in rows]
        if self.head is not None:
            width = self.head.weight.shape[1]
            hidden = [self._hidden(part) for part in parts]
            batch["ref_hidden"] = torch.cat([*hidden, torch.empty((0, width), dtype=self._dtype)])
        elif self._has_top_k:
            batch |= _padded_top_k(parts)
        return batch

    def record(self, batch: Mapping[str, Tensor]) -> Reference:
        """The record that the losses take, from a batch on any device."""
        if self.head is not None:
            return HiddenReference(batch["ref_hidden"], self.head)
        if self._has_top_k:
            return TopKReference(
                batch["ref_ids"], batch["ref_log_probs"], batch["ref_log_rest"], batch["ref_label_logps"]
            )
        return ScalarReference(batch["ref_logps"])

    def logps(self, row_id: str) -> tuple[float, float]:
        """Log-probabilities (nats) of chosen and rejected."""
        return self._read(row_id).logps

    def _hidden(self, part: Mapping[str, Tensor]) -> Tensor:
        if "hidden" in part:
            return part["hidden"].to(self._dtype)
        return expand(part["hidden_8bit"], part["hidden_scale"]).to(self._dtype)

    def _read(self, row_id: str) -> StoredRow:
        shard, number = self._where[row_id]
        return shard.read(number)


def read_head(file: ShardFile, device: torch.device, dtype: torch.dtype) -> Head:
    """The frozen output head from its file."""
    tensors = {name: file.tensor(name).to(device, dtype) for name in file.tensors}
    softcap, vocab_size = file.metadata.get("softcap"), file.metadata.get("vocab_size")
    return Head(
        tensors["weight"],
        tensors.get("bias"),
        float(file.metadata["scale"]),
        None if softcap is None else float(softcap),
        None if vocab_size is None else int(vocab_size),
    )


def _padded_top_k(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rectangular ``[N, k]`` with the largest number of kept tokens as k."""

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        return torch.cat([part[name] for part in parts] or [torch.empty(0, dtype=dtype)])

    counts = joined("counts", torch.int32)
    filled = torch.arange(int(counts.max()) if len(counts) else 1) < counts.unsqueeze(-1)
    ids = torch.full(filled.shape, NO_TOKEN, dtype=torch.int64)
    log_probs = torch.full(filled.shape, -torch.inf)
    ids[filled] = joined("ids", torch.int32).long()
    log_probs[filled] = joined("log_probs", torch.float32)
    return {
        "ref_ids": ids,
        "ref_log_probs": log_probs,
        "ref_log_rest": joined("log_rest", torch.float32),
        "ref_label_logps": joined("label_logps", torch.float32),
    }
