"""What one train worker does, and the Ray Train group of such workers."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.cluster import ray_errors
from pipeline.config import RunConfig
from pipeline.progress import Report, relayed, reporter


@dataclass(frozen=True)
class TrainSpec:
    """One training stage: everything is a path or plain data, for it crosses process borders."""

    kind: Literal["sft", "align"]
    run: dict[str, Any]
    """`RunConfig` as JSON."""
    model_dir: str
    tokens_dir: str
    reference: str | None
    """Where the reference cache is: a directory or a URL."""
    out_dir: str
    wandb_dir: str
    name: str


def run_training(spec: TrainSpec, scratch: Path, report: Report) -> dict[str, float]:
    """Run the spec in a group of workers, wait for it, and return its timings (``seconds_per_step``).

    Raises:
        PipelineError: what a worker raised for the user.
        ClusterError: when a worker process died.
    """
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = RunConfig.model_validate(spec.run).cluster
    use_gpu = cluster.gpus_per_worker > 0
    name = f"{spec.name}-{uuid.uuid4().hex[:8]}"
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = cluster.gpus_per_worker
    with relayed(report) as relay, ray_errors():
        TorchTrainer(
            _worker,
            train_loop_config={"spec": spec, "relay": relay},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=RayRunConfig(
                # A fresh name each time: Ray would otherwise try to resume from its own snapshot, and the graph
                # of artefacts is what resumes here.
                name=name,
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        ).fit()
        # Ray's own snapshot of the run; nothing reads it again.
        shutil.rmtree(scratch / name, ignore_errors=True)
        timings: dict[str, float] = ray.get(relay.result.remote())
    return timings


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker: build task and engine, train, save. Rank 0 writes."""
    import ray
    import ray.train.torch
    import torch

    from pipeline.models.load import load_tokenizer, torch_dtype
    from pipeline.training import engine as engines
    from pipeline.training.loop import micro_batches_per_step, train
    from pipeline.training.metrics import MetricsLog

    spec: TrainSpec = config["spec"]
    run = RunConfig.model_validate(spec.run)
    rank = ray.train.get_context().get_world_rank()
    world_size = ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(run.cluster.cpus_per_worker)
    torch.manual_seed(run.train.seed)
    engines.prepare_process(device)

    tokenizer = load_tokenizer(Path(spec.model_dir))
    dtype = torch_dtype(run.model.dtype)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    task, validation, plan = _work(spec, run, pad_id, device, dtype)
    engine = engines.Engine(
        Path(spec.model_dir),
        plan.optim,
        dtype,
        device,
        micro_batches_per_step(plan.batch_size, plan.micro_batch_size, world_size),
    )
    out_dir = Path(spec.out_dir)
    report = reporter(config["relay"])
    if rank == 0:
        with MetricsLog(out_dir / "metrics.jsonl", run.wandb, Path(spec.wandb_dir), spec.name, spec.run) as log:
            seconds = train(engine, task, validation, plan, log, report)
    else:
        seconds = train(engine, task, validation, plan, lambda row: None, lambda done, total, note: None)
    digest = engine.save(out_dir / "model", tokenizer)
    if rank == 0:
        record = {
            "steps": plan.total_steps,
            "workers": world_size,
            "zero_stage": plan.optim.zero_stage,
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "weights_before": engine.source_digest,
            "weights_after": digest,
        }
        (out_dir / "training.json").write_text(json.dumps(record, indent=1))
        ray.get(config["relay"].put_result.remote({"seconds_per_step": seconds / plan.total_steps}))
    torch.distributed.barrier()


def _work(spec: TrainSpec, run: RunConfig, pad_id: int, device: Any, dtype: Any) -> Any:
    """The tasks and the plan of a spec: (training task, validation task or None, `LoopPlan`)."""
    from pipeline.data.order import num_batches
    from pipeline.data.tables import read_table
    from pipeline.models.contents import tokenizer_contents
    from pipeline.models.load import vocabulary_size
    from pipeline.places import Place
    from pipeline.records import PairTokens, TextTokens
    from pipeline.reference.reader import OpenCache
    from pipeline.training.loop import LoopPlan
    from pipeline.training.preference import PreferenceTask
    from pipeline.training.sft import SFTTask, total_steps

    tokens = Path(spec.tokens_dir)
    block = run.train.head_block_bytes
    if spec.kind == "sft":
        rows = read_table(tokens / "sft.parquet", TextTokens)
        plan = LoopPlan(
            total_steps(rows, run.sft), run.sft.batch_size, run.sft.micro_batch_size, run.sft.seed, 0, run.sft.optim
        )
        return SFTTask(rows, run.sft, pad_id, block), None, plan
    assert spec.reference is not None
    train = run.train
    reference = OpenCache(Place(spec.reference), device=device, dtype=dtype)
    reference.check_policy(tokenizer_contents(Path(spec.model_dir)), vocabulary_size(Path(spec.model_dir)))
    tasks = []
    num_rows = 0
    for split in ("train", "validation"):
        pairs = read_table(tokens / f"{split}.parquet", PairTokens)
        tasks.append(PreferenceTask(pairs, reference.rows(split, pairs), run.loss, run.risk, pad_id, block))
        num_rows = num_rows or len(pairs)
    steps = train.epochs * num_batches(num_rows, train.batch_size)
    steps = min(steps, train.max_steps or steps)
    plan = LoopPlan(steps, train.batch_size, train.micro_batch_size, train.seed, train.eval_every_steps, train.optim)
    return *tasks, plan
