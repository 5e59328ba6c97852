"""What a checkpoint costs a training: blocks of steps with one and without, side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from rich.table import Table

from pipeline.bench.checkpoint_config import EVERY_S, CheckpointBenchmark
from pipeline.bench.config import BenchmarkConfig
from pipeline.bench.material import model_directory, review_rows, single_process
from pipeline.bench.measure import machine
from pipeline.bench.output import output_file, write_figures
from pipeline.checkpoints.directory import RunDirectory
from pipeline.checkpoints.journal import Journal
from pipeline.checkpoints.layout import METRICS
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.config import CheckpointConfig, GuardConfig, OptimConfig, SFTConfig
from pipeline.console import quiet_libraries
from pipeline.models.load import load_tokenizer
from pipeline.training.checkpointer import Checkpointer
from pipeline.training.engine import Engine
from pipeline.training.sft import SFTTask
from pipeline.training.state import LoopState

_CPU = torch.device("cpu")
_OPTIM = OptimConfig(lr=1e-9)


def checkpoint_benchmark(config: CheckpointBenchmark) -> int:
    """Measure, print the table and write the figures; returns the exit code."""
    output = output_file(config.output)
    quiet_libraries(output.with_suffix(".log"))
    torch.set_num_threads(config.threads)
    records = []
    with single_process(), tempfile.TemporaryDirectory(prefix=".benchmark-", dir=output.parent) as scratch:
        for number, name in enumerate(config.models):
            records.append({"model": name} | _measure(config, name, Path(scratch) / str(number)))
    on = machine(BenchmarkConfig(threads=config.threads))
    RichConsole(width=120).print(_table(records))
    write_figures(output, {"machine": on, "config": config.model_dump(), "models": records})
    print(f"on {on['device']}, torch {on['torch']}; figures: {output}")
    return 0


def _measure(config: CheckpointBenchmark, name: str, scratch: Path) -> dict[str, Any]:
    model = model_directory(name, scratch)
    tokenizer = load_tokenizer(model)
    task = SFTTask(review_rows(tokenizer), SFTConfig(steps=1, loss_on="all"), tokenizer.eos_token_id, 64 * 2**20)
    rows = list(range(config.rows))
    batch, normaliser = task.collate(rows), task.normaliser(rows)
    directory = RunDirectory(scratch / "run", {})
    directory.prepare()
    engine = Engine(model, _OPTIM, torch.float32, _CPU, 1)
    journal = Journal(directory.path / METRICS)
    checkpoints = Checkpointer(directory, engine, CheckpointConfig(every_s=1e-9), GuardConfig(), journal, {})

    def step() -> float:
        began = time.perf_counter()
        engine.train_step([batch], task, normaliser, _OPTIM.lr)
        return time.perf_counter() - began

    step()
    steps = max(1, round(config.block_s / statistics.median(step() for _ in range(3))))
    done = 0

    def block(checkpoint: bool) -> tuple[float, float]:
        """Seconds of a block, and until its checkpoint was committed."""
        nonlocal done
        began = time.perf_counter()
        committed = 0.0
        for number in range(steps):
            step()
            done += 1
            if checkpoint and number == 0:
                taken = time.perf_counter()
                checkpoints.after_step(done, LoopState(done).to_json())
            if checkpoint and not committed and directory.steps()[-1:] == [done - number]:
                committed = time.perf_counter() - taken
        seconds = time.perf_counter() - began
        checkpoints.finish()
        return seconds, committed or time.perf_counter() - taken if checkpoint else 0.0

    block(True)
    costs, commits = [], []
    for number in range(config.rounds):
        order = (True, False) if number % 2 else (False, True)
        timed = {kind: block(kind) for kind in order}
        costs.append(timed[True][0] - timed[False][0])
        commits.append(timed[True][1])
    journal.close()
    halts = checkpoints.seconds / checkpoints.count
    size = sum(path.stat().st_size for path in (directory.path / f"step-{directory.steps()[-1]:08d}").iterdir())
    began = time.perf_counter()
    found = directory.newest(lambda text: None)
    verified = time.perf_counter() - began
    assert found is not None
    Engine(model, _OPTIM, torch.float32, _CPU, 1, CheckpointReader(found.path, found.manifest))
    return {
        "bytes": size,
        "steps_of_a_block": steps,
        "cost_s": costs,
        "share": [cost / EVERY_S for cost in costs],
        "copy_s": halts,
        "commit_s": commits,
        "verify_s": verified,
        "resume_s": time.perf_counter() - began,
    }


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(title=f"A checkpoint every {EVERY_S:g} s, one worker", title_justify="left")
    for column in ("model", "MB", "costs, s", "share of the time", "copy, s", "committed after, s", "resume, s"):
        table.add_column(column)
    for one in records:
        table.add_row(
            one["model"],
            f"{one['bytes'] / 1e6:,.1f}",
            _spread(one["cost_s"], ".2f"),
            _spread(one["share"], ".1%"),
            f"{one['copy_s']:.2f}",
            _spread(one["commit_s"], ".1f"),
            f"{one['resume_s']:.1f} (verifying {one['verify_s']:.1f})",
        )
    return table


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
