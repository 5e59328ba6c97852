"""The reference stage: Ray actors host the frozen reference and write one shard at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cluster import map_over_actors
from pipeline.config import RunConfig
from pipeline.progress import Report
from pipeline.reference.shards import shard_path, write_head, write_shard

SPLITS_NEEDED = ("train", "validation")
"""Test pairs are scored by evaluation, which has both models at hand for every method."""


class ReferenceActor:
    """Hosts the reference; refuses a model whose logits its head does not reproduce on the first batch."""

    def __init__(self, run: dict[str, Any], model_dir: str) -> None:
        import torch

        from pipeline.models.load import load_model, load_tokenizer, torch_dtype

        self._run = RunConfig.model_validate(run)
        cluster = self._run.cluster
        self._device = torch.device("cuda" if cluster.gpus_per_actor > 0 else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(cluster.cpus_per_actor)
        dtype = torch_dtype(self._run.model.dtype)
        self._model = load_model(Path(model_dir), dtype).to(self._device)
        tokenizer = load_tokenizer(Path(model_dir))
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._checked = False

    def compute(self, tokens_dir: str, split: str, index: int, out_dir: str) -> int:
        """Write shard ``index`` of a split and return the number of its rows."""
        from pipeline.data.tables import read_table
        from pipeline.records import PairTokens
        from pipeline.reference.compute import reference_rows

        config = self._run.reference
        start = index * config.rows_per_shard
        pairs = read_table(Path(tokens_dir) / f"{split}.parquet", PairTokens)[start : start + config.rows_per_shard]
        if not self._checked:
            self._check_head(pairs[:2])
        rows = reference_rows(
            self._model,
            pairs,
            config.tier,
            pad_id=self._pad_id,
            batch_tokens=config.batch_tokens,
            block_bytes=self._run.train.head_block_bytes,
            device=self._device,
        )
        write_shard(shard_path(Path(out_dir), split, index), rows)
        return len(rows)

    def _check_head(self, pairs: list[Any]) -> None:
        from pipeline.models.load import check_head
        from pipeline.models.sequences import pad_sequences

        batch = pad_sequences([p.prompt_ids for p in pairs], [p.chosen_ids for p in pairs], self._pad_id)
        check_head(self._model, batch["input_ids"].to(self._device), batch["attention_mask"].to(self._device))
        self._checked = True

    def write_head(self, out_dir: str) -> None:
        """Write the frozen output head."""
        from pipeline.models.load import output_head

        write_head(Path(out_dir), output_head(self._model))


def run_reference(run: RunConfig, model_dir: Path, tokens_dir: Path, out_dir: Path, report: Report) -> int:
    """Compute all shards of the splits that training needs; returns the number of pairs.

    Which actor computes a shard never matters: a shard's content is a pure function of its rows and the model.
    """
    import pyarrow.parquet as pq

    per_shard = run.reference.rows_per_shard
    counts = {split: pq.read_metadata(tokens_dir / f"{split}.parquet").num_rows for split in SPLITS_NEEDED}
    total = sum(counts.values())
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("compute", (str(tokens_dir), split, index, str(out_dir)))
        for split, count in counts.items()
        for index in range(-(-count // per_shard))
    ]
    if run.reference.tier == "hidden":
        calls.append(("write_head", (str(out_dir),)))
    done = 0

    def on_result(rows: int | None) -> None:
        nonlocal done
        done += rows or 0
        report(done, total, "pairs")

    map_over_actors(ReferenceActor, (run.model_dump(mode="json"), str(model_dir)), run.cluster, calls, on_result)
    return done
