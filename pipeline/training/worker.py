"""What one train worker does: build task and engine, go on from where the run is, train, save."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.checkpoints.directory import Checkpoint, RunDirectory
from pipeline.checkpoints.journal import Journal, as_line
from pipeline.checkpoints.layout import METRICS
from pipeline.checkpoints.remote import open_run
from pipeline.config import RunConfig
from pipeline.copies import send
from pipeline.disk import scratch_in
from pipeline.progress import reporter
from pipeline.refusals import explained
from pipeline.storage import local_copy
from pipeline.surroundings import SCRATCH, node_scratch
from pipeline.training.spec import TrainSpec
from pipeline.training.state import LoopState

WRITER_WAIT_S = 120.0
"""For the worker of an earlier job, whose cluster has still to notice that its driver is dead."""

SKIPPED_ROWS = "skipped.jsonl"


def work(config: dict[str, Any]) -> None:
    """Runs in every worker of the Ray Train group; rank 0 writes what belongs to all.

    Args:
        config: ``spec``, ``relay`` (an actor of `pipeline.progress`) and ``resume``: step of the verified checkpoint
            to go on from, or None.
    """
    import ray
    import ray.train.torch
    import torch

    from pipeline.models.load import load_tokenizer, torch_dtype
    from pipeline.training import engine as engines

    spec: TrainSpec = config["spec"]
    run = RunConfig.model_validate(spec.run)
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    config["relay"].join.remote(ray.get_runtime_context().current_actor)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(run.cluster.cpus_per_worker)))
    engines.prepare_process(device)
    tokenizer = load_tokenizer(local_copy(spec.model_dir))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    directory = open_run(spec.run_dir, spec.identity)
    rank = context.get_world_rank()
    writing = directory.writing(WRITER_WAIT_S) if rank == 0 else contextlib.nullcontext()
    with directory.on_this_node(), writing:
        torch.distributed.barrier()  # an earlier job's worker, which may prune what is read now, writes no more
        training = Training(spec, run, directory, device, torch_dtype(run.model.dtype), config["resume"])
        result = training.run(tokenizer, pad_id, reporter(config["relay"]))
        if rank == 0:
            ray.get(config["relay"].put_result.remote(result))
        torch.distributed.barrier()


class Training:
    """One rank of a training, in a process that has joined its group; it knows no Ray.

    Args:
        directory: held for writing by rank 0.
        resume: step of the verified checkpoint to go on from, or None.
    """

    def __init__(
        self, spec: TrainSpec, run: RunConfig, directory: RunDirectory, device: Any, dtype: Any, resume: int | None
    ) -> None:
        import torch

        self._spec, self._run, self._directory, self._device, self._dtype = spec, run, directory, device, dtype
        self._checkpoint = None if resume is None else directory.fetch(resume)
        self._rank: int = torch.distributed.get_rank()
        self._world_size: int = torch.distributed.get_world_size()

    def run(self, tokenizer: Any, pad_id: int, report: Callable[[float, float, str], None]) -> dict[str, Any]:
        """Train to the end and save; returns timings, and what was sent to a URL (``sent``). With ``rolled_back`` in
        them the run has gone back instead, and wants to be started again."""
        from pipeline.checkpoints import rng
        from pipeline.checkpoints.reader import CheckpointReader
        from pipeline.training.checkpointer import Checkpointer
        from pipeline.training.engine import Engine
        from pipeline.training.loop import SpikeError, micro_batches_per_step, train
        from pipeline.training.reporting import WorkerListener
        from pipeline.training.seeding import seed_everything
        from pipeline.training.tasks import tasks_and_plan

        spec, run = self._spec, self._run
        task, validation, plan = tasks_and_plan(spec, run, pad_id, self._device, self._dtype)
        done = 0 if self._checkpoint is None else self._checkpoint.step
        report(done, plan.total_steps, "loads the model")
        reader = CheckpointReader(self._checkpoint.path, self._checkpoint.manifest) if self._checkpoint else None
        state = LoopState.from_json(reader.manifest["loop"]) if reader else LoopState()
        seed_everything(plan.seed, self._rank, state.step)
        micro_batches = micro_batches_per_step(plan.batch_size, plan.micro_batch_size, self._world_size)
        engine = Engine(local_copy(spec.model_dir), plan.optim, self._dtype, self._device, micro_batches, reader)
        report(done, plan.total_steps, "begins")
        before = reader.manifest["weights_before"] if reader else engine.weights_digest
        with self._journal() as journal, self._tracker() as track:
            facts = {
                "weights_before": before,
                "schedule": plan.optim.model_dump(mode="json") | {"total_steps": plan.total_steps},
                "sampler": {"seed": plan.seed, "batch_size": plan.batch_size, "num_rows": task.num_rows},
            }
            checkpoints = Checkpointer(self._directory, engine, run.checkpoint, plan.guard, journal, facts)
            listener = WorkerListener(self._directory, checkpoints, journal, track, report)
            if reader is not None and (states := reader.rng(self._rank)) is not None:
                rng.restore(*states, self._device)
            if reader is None:
                checkpoints.begin(state.to_json())
            try:
                state = train(engine, task, validation, plan, listener, state)
            except SpikeError as needed:
                checkpoints.finish()
                if self._rank == 0:
                    self._roll_back(needed.state, needed.loss, plan.guard)
                return {"rolled_back": 1.0}
            checkpoints.finish()
            report(state.step, plan.total_steps, "saves the model")
            with self._output() as out:
                digest = engine.save(out / "model", tokenizer)
                if journal is not None:
                    self._save_records(out, state, plan, before, digest, journal.rows())
                sent = send(out, spec.out_dir) if journal is not None and "://" in spec.out_dir else {}
        return {
            "sent": sent,
            "seconds_per_step": state.seconds / plan.total_steps,
            "checkpoints": float(checkpoints.count),
            "checkpoint_seconds": checkpoints.seconds,
        }

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal | None]:
        if self._rank:
            yield None
            return
        with self._directory.refusals("written"):
            journal = Journal(self._directory.path / METRICS, self._checkpoint.rows() if self._checkpoint else b"")
        try:
            yield journal
        finally:
            journal.close()

    @contextlib.contextmanager
    def _tracker(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        from pipeline.training.metrics import Tracker

        if self._rank:
            yield lambda row: None
            return
        spec = self._spec
        where = spec.wandb_dir
        directory = node_scratch(where) if "://" in where else Path(where)
        with Tracker(self._run.wandb, directory, spec.name, spec.run) as tracker:
            yield tracker

    def _roll_back(self, state: LoopState, loss: float, config: Any) -> None:
        from pipeline.errors import TrainingError
        from pipeline.training.guard import rolled_back

        every = config.roll_back_every_steps
        tried = [self._directory.verify(step) for step in reversed(self._directory.steps()) if step % every == 0]
        found = next((one for one in tried if isinstance(one, Checkpoint)), None)
        if found is None:
            raise TrainingError(
                f"the loss jumped to {loss:.4g}, and {self._directory.path} has no good checkpoint to go back to "
                f"({'; '.join(map(str, tried)) or 'there is none'}): lower optim.lr and train from the start"
            )
        before = LoopState.from_json(found.manifest["loop"])
        after = rolled_back(before.guard, state.guard, config)
        changed = LoopState(before.step, before.seconds, after).to_json()
        row = {"split": "roll_back", "step": state.step, "loss": loss, "to": found.step, "lr_scale": after.lr_scale}
        self._directory.roll_back(found, {"loop": changed}, row)

    @contextlib.contextmanager
    def _output(self) -> Iterator[Path]:
        """The directory of the result; for one that is sent to a URL, a fresh one on this node."""
        if "://" not in self._spec.out_dir:
            yield Path(self._spec.out_dir)
            return
        scratch = node_scratch(self._spec.run_dir) / "output"
        what = f"the trained model cannot be written to {scratch}"
        with explained(what, scratch, SCRATCH), scratch_in(scratch) as path:
            yield path

    def _save_records(self, out: Path, state: LoopState, plan: Any, before: str, after: str, rows: bytes) -> None:
        import torch

        cuda = self._device.type == "cuda"
        record = {
            "steps": plan.total_steps,
            "workers": self._world_size,
            "zero_stage": plan.optim.zero_stage,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "skipped_steps": len(state.guard.skipped),
            "spikes": len(state.guard.spikes),
            "roll_backs": state.guard.roll_backs,
            "lr_scale": state.guard.lr_scale,
            "weights_before": before,
            "weights_after": after,
        }
        (out / "training.json").write_text(json.dumps(record, indent=1))
        (out / METRICS).write_bytes(rows)
        skipped = [as_line(row) for row in map(json.loads, rows.splitlines()) if row["split"] == "skipped"]
        (out / SKIPPED_ROWS).write_bytes(b"".join(skipped))
