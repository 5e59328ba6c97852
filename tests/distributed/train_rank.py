"""One rank of a training without Ray, started by `training_runs`: the argument is a JSON file with its options."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch
import torch.distributed

from pipeline.checkpoints.directory import RunDirectory
from pipeline.config import RunConfig
from pipeline.models.load import load_tokenizer, torch_dtype
from pipeline.training import engine as engines
from pipeline.training.preference import PreferenceTask
from pipeline.training.reporting import WorkerListener
from pipeline.training.spec import TrainSpec
from pipeline.training.worker import Training


def poison(faults: dict[str, str]) -> None:
    """Make the loss (``"loss"``) or only the gradient (``"gradient"``) of some rows not finite, or the loss huge
    (``"spike"``)."""
    collate, objective = PreferenceTask.collate, PreferenceTask.objective

    def marked(self: PreferenceTask, rows: Any) -> Any:
        kinds = {None: 0, "loss": 1, "gradient": 2, "spike": 3}
        batch = collate(self, rows)
        marks = [0 if row is None else kinds[faults.get(self.row_id(row))] for row in rows]
        return batch | {"poison": torch.tensor(max(marks))}

    def spoilt(self: PreferenceTask, hidden: Any, head: Any, batch: Any) -> Any:
        loss, sums = objective(self, hidden, head, batch)
        kind = int(batch["poison"])
        if kind == 1:
            loss = loss * float("nan")
        if kind == 2:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        if kind == 3:
            sums = sums + torch.tensor([1e3] + [0.0] * (len(sums) - 1))
        return loss, sums

    PreferenceTask.collate, PreferenceTask.objective = marked, spoilt  # type: ignore[method-assign]


def die_after(step: int) -> None:
    """SIGKILL this process as soon as so many steps are done."""
    after_step = WorkerListener.after_step

    def dying(self: WorkerListener, state: Any) -> None:
        after_step(self, state)
        if state.step >= step:
            self._checkpoints.finish()
            os.kill(os.getpid(), signal.SIGKILL)

    WorkerListener.after_step = dying  # type: ignore[method-assign]


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    device = torch.device("cpu")
    engines.prepare_process(device)
    torch.distributed.init_process_group("gloo")
    poison(options["poison"])
    if options["die_after"]:
        die_after(options["die_after"])
    spec = TrainSpec(**options["spec"])
    run = RunConfig.model_validate(spec.run)
    directory = RunDirectory(Path(spec.run_dir), spec.identity)
    training = Training(spec, run, directory, device, torch_dtype(run.model.dtype), options["resume"])
    tokenizer = load_tokenizer(Path(spec.model_dir))
    result = training.run(tokenizer, 0, lambda done, total, note: None)
    if torch.distributed.get_rank() == 0:
        (Path(spec.out_dir) / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
