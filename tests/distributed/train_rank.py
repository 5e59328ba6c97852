"""One rank of trainings without Ray, started by `training_runs`: the arguments are a JSON file with a list of them, and
the device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch
import torch.distributed

from pipeline.checkpoints.remote import open_run
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.models.load import load_tokenizer, torch_dtype
from pipeline.training import engine as engines
from pipeline.training.preference import PreferenceTask
from pipeline.training.reporting import WorkerListener
from pipeline.training.spec import TrainSpec
from pipeline.training.worker import Training

KINDS = {None: 0, "loss": 1, "gradient": 2, "spike": 3}
COLLATE, OBJECTIVE, AFTER_STEP = PreferenceTask.collate, PreferenceTask.objective, WorkerListener.after_step


class AbandonedError(Exception):
    """The process is as good as dead: nothing of the training goes on."""


def poison(faults: dict[str, str]) -> None:
    """Make the loss (``"loss"``) or only the gradient (``"gradient"``) of some rows not finite, or the loss huge
    (``"spike"``)."""

    def marked(self: PreferenceTask, rows: Any) -> Any:
        marks = [0 if row is None else KINDS[faults.get(self.row_id(row))] for row in rows]
        return COLLATE(self, rows) | {"poison": torch.tensor(max(marks))}

    def spoilt(self: PreferenceTask, hidden: Any, head: Any, batch: Any) -> Any:
        loss, columns = OBJECTIVE(self, hidden, head, batch)
        kind = int(batch["poison"])
        if kind == KINDS["loss"]:
            loss = loss * float("nan")
        if kind == KINDS["gradient"]:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        if kind == KINDS["spike"]:
            columns = columns.detach().clone()
            columns[0, 0] += 1e3
        return loss, columns

    PreferenceTask.collate, PreferenceTask.objective = marked, spoilt  # type: ignore[method-assign]


def abandon_after(step: int | None) -> None:
    """End the training as soon as so many steps are done; None lets it run."""

    def dying(self: WorkerListener, state: Any) -> None:
        AFTER_STEP(self, state)
        if step is not None and state.step >= step:
            self._checkpoints.finish()
            raise AbandonedError

    WorkerListener.after_step = dying  # type: ignore[method-assign]


def run(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    poison(options["poison"])
    abandon_after(options["abandon_after"])
    spec = TrainSpec(**options["spec"])
    config = RunConfig.model_validate(spec.run)
    directory = open_run(spec.run_dir, spec.identity)
    said: list[str] = []
    if torch.distributed.get_rank() == 0:
        directory.prepare()
    torch.distributed.barrier()
    found = directory.newest(said.append) if options["resume"] else None
    torch.distributed.barrier()
    resume = found and found.step
    tokenizer = load_tokenizer(Path(spec.model_dir))
    result: dict[str, Any] = {"said": said, "resumed": resume}
    try:
        with directory.on_this_node():
            training = Training(spec, config, directory, device, torch_dtype(config.model.dtype), resume)
            result |= training.run(tokenizer, 0, lambda done, total, note: None)
            torch.distributed.barrier()
            return result
    except AbandonedError:
        return result | {"abandoned": True}
    except PipelineError as error:
        return result | {"error": str(error)}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    device = torch.device(sys.argv[2])
    torch.set_num_threads(1)
    engines.prepare_process(device)
    torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
    results = [run(options, device) for options in jobs]
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).with_suffix(".results").write_text(json.dumps(results))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
