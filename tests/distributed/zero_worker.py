"""One rank of a training run, started by test_zero: arguments are a JSON file with the run's options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]

import tiny
import torch
import torch.distributed

from pipeline.config import LossConfig, OptimConfig, RiskConfig
from pipeline.places import Place
from pipeline.reference.reader import OpenCache
from pipeline.training import engine as engines
from pipeline.training.loop import Listener, LoopPlan, micro_batches_per_step, train
from pipeline.training.preference import PreferenceTask


class NoTokenizer:
    def save_pretrained(self, path: Path) -> None:
        pass


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    device = torch.device("cpu")
    engines.prepare_process(device)
    torch.distributed.init_process_group("gloo")
    optim = OptimConfig(**options["optim"])
    pairs = tiny.random_pairs(options["num_pairs"])
    cache = OpenCache(Place(options["reference"]), device=device, dtype=torch.float32)
    reference = cache.rows("train", pairs)
    task = PreferenceTask(
        pairs, reference, LossConfig(**options["loss"]), RiskConfig(**options["risk"]), tiny.PAD, 40_000
    )
    plan = LoopPlan(options["steps"], options["batch_size"], options["micro_batch_size"], 0, 7, optim)
    world = torch.distributed.get_world_size()
    engine = engines.Engine(
        Path(options["model"]),
        optim,
        torch.float32,
        device,
        micro_batches_per_step(plan.batch_size, plan.micro_batch_size, world),
    )
    rows: list[dict] = []
    listener = Listener()
    listener.row = rows.append
    train(engine, task, task, plan, listener)
    out = Path(options["out"])
    engine.save(out / "model", NoTokenizer())
    if torch.distributed.get_rank() == 0:
        (out / "rows.json").write_text(json.dumps(rows))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
