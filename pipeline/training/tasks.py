"""What a training stage trains on, and in what steps."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig
from pipeline.storage import local_copy
from pipeline.training.spec import TrainSpec


def tasks_and_plan(spec: TrainSpec, run: RunConfig, pad_id: int, device: Any, dtype: Any) -> Any:
    """The tasks and the plan of a spec: (training task, validation task or None, `LoopPlan`)."""
    from pipeline.data.order import num_batches, share_of_groups
    from pipeline.data.tables import read_table
    from pipeline.models.contents import tokenizer_contents
    from pipeline.models.load import vocabulary_size
    from pipeline.places import Place
    from pipeline.records import PairTokens, TextTokens
    from pipeline.reference.reader import OpenCache
    from pipeline.training.loop import LoopPlan
    from pipeline.training.preference import PreferenceTask
    from pipeline.training.sft import SFTTask, total_steps

    tokens = local_copy(spec.tokens_dir)
    block = run.train.head_block_bytes
    if spec.kind == "sft":
        sft = run.sft
        rows = read_table(tokens / "sft.parquet", TextTokens)
        plan = LoopPlan(total_steps(rows, sft), sft.batch_size, sft.micro_batch_size, sft.seed, 0, sft.optim, sft.guard)
        return SFTTask(rows, sft, pad_id, block), None, plan
    assert spec.reference is not None
    train = run.train
    reference = OpenCache(Place(spec.reference), device=device, dtype=dtype)
    model = local_copy(spec.model_dir)
    reference.check_policy(tokenizer_contents(model), vocabulary_size(model))
    tasks = []
    num_rows = 0
    for split in ("train", "validation"):
        pairs = read_table(tokens / f"{split}.parquet", PairTokens)
        if split == "train":
            pairs = share_of_groups(pairs, train.data_fraction)
        tasks.append(PreferenceTask(pairs, reference.rows(split, pairs), run.loss, run.risk, pad_id, block))
        num_rows = num_rows or len(pairs)
    steps = train.epochs * num_batches(num_rows, train.batch_size)
    steps = min(steps, train.max_steps or steps)
    plan = LoopPlan(
        steps, train.batch_size, train.micro_batch_size, train.seed, train.eval_every_steps, train.optim, train.guard
    )
    return *tasks, plan
