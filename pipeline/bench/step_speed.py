"""What a training step costs with each tier of the cache, and with the reference computed in the step.

All kinds of step share one policy, one optimiser (the engine that users run, unpartitioned) and the same batches.
Before the timed ones each kind makes a step that moves the policy off the reference, as in training; the learning
rate of the timed steps is too small to move it further.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.bench.material import Material, single_process
from pipeline.bench.reference_config import ReferenceBenchmark
from pipeline.config import LossConfig, OptimConfig, RiskConfig, TrainConfig
from pipeline.data.order import global_batch, num_batches, shard
from pipeline.data.tables import read_table
from pipeline.models.load import final_hidden, load_model, load_tokenizer, output_head
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.reader import OpenCache
from pipeline.risk.head import HiddenReference, Reference
from pipeline.training.engine import Engine
from pipeline.training.preference import PreferenceTask, ReferenceRows
from pipeline.training.prefetch import ahead
from pipeline.training.task import Batch

BASELINE = "scalar"
"""dpo with precomputed log-probabilities: what a loss without the reference's distributions costs."""

LIVE = "live"
STEPS = (BASELINE, "hidden", "hidden_8bit", "topk_64", LIVE)
"""Kinds of step: those with a cache by the name of its tier. All but the baseline are ra_dpo2 with CVaR."""

_WARM_UP_LR = 1e-5


class LiveReference:
    """The frozen reference, run in every step on the sequences of the batch.

    Args:
        model: on the trainer's device, in evaluation mode.
    """

    has_law = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model.requires_grad_(False)
        self._head = output_head(model)

    def collate(self, row_ids: Sequence[str | None]) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def record(self, batch: Mapping[str, Tensor]) -> Reference:
        hidden = final_hidden(self._model, batch["input_ids"], batch["attention_mask"])
        return HiddenReference(hidden[batch["mask"]], self._head)


def time_steps(config: ReferenceBenchmark, material: Material, caches: Mapping[str, str]) -> dict[str, list[float]]:
    """Seconds of each kind of step in each round.

    Args:
        caches: places of finished caches of the material's pairs by the name of their tier.
    """
    torch.set_num_threads(config.threads)
    device, dtype = torch.device("cpu"), torch.float32
    pairs = read_table(material.tokens_dir / "train.parquet", PairTokens)
    with single_process():
        tasks = {name: _task(name, config, material, pairs, caches) for name in STEPS}
        engine = Engine(material.model_dir, OptimConfig(lr=config.lr, zero_stage=0), dtype, device, 1)
        steps = {name: ahead(_batches(task, config)) for name, task in tasks.items()}

        def one(name: str, lr: float) -> float:
            began = time.perf_counter()
            rows, batch = next(steps[name])
            engine.train_step([batch], tasks[name], tasks[name].normaliser(rows), lr)
            return time.perf_counter() - began

        for name in STEPS:
            one(name, _WARM_UP_LR)
        seconds: dict[str, list[float]] = {name: [] for name in STEPS}
        for round_ in range(config.steps):
            shift = round_ % len(STEPS)
            for name in STEPS[shift:] + STEPS[:shift]:
                seconds[name].append(one(name, config.lr))
        for iterator in steps.values():
            iterator.close()  # type: ignore[attr-defined]
    return seconds


def _task(
    name: str, config: ReferenceBenchmark, material: Material, pairs: Sequence[PairTokens], caches: Mapping[str, str]
) -> PreferenceTask:
    tokenizer = load_tokenizer(material.model_dir)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    reference: ReferenceRows
    if name == LIVE:
        reference = LiveReference(load_model(Path(material.model_dir), torch.float32))
    else:
        cache = OpenCache(Place(caches[name]), device=torch.device("cpu"), dtype=torch.float32)
        reference = cache.rows("train", pairs)
    loss = LossConfig(method="dpo" if name == BASELINE else "ra_dpo2")
    block = TrainConfig.model_fields["head_block_bytes"].default
    return PreferenceTask(pairs, reference, loss, RiskConfig(measure="cvar", level=config.level), pad_id, block)


def _batches(task: PreferenceTask, config: ReferenceBenchmark) -> Iterator[tuple[list[int], Batch]]:
    """Rows and batch of every step, the warm-up included, as the training loop makes them for one worker."""
    per_epoch = num_batches(task.num_rows, config.step_pairs)
    for step in range(config.steps + 1):
        rows = global_batch(task.num_rows, config.step_pairs, 0, *divmod(step, per_epoch))
        [mine] = shard(rows, 0, 1, config.step_pairs)
        yield rows, task.collate(mine)
