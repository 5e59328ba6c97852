"""Run directories with real files, written without DeepSpeed (not a test: shared by the tests of this folder)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints import rng
from pipeline.checkpoints.directory import RunDirectory
from pipeline.checkpoints.journal import Journal
from pipeline.checkpoints.layout import KINDS, METRICS, as_json, rank_file, write_rows, write_tensors

IDENTITY: dict[str, Any] = {
    "options": {"train": {"optim": {"lr": 0.001}, "seed": 0}},
    "libraries": {"torch": "2"},
    "data": "d" * 32,
    "model": "a" * 64,
    "reference": "b" * 32,
}


def numbers(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random flat numbers of every kind for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: {name: torch.randn(torch.Size(shape).numel(), generator=generator) for name, shape in shapes.items()}
        for kind in KINDS
    }


def write_checkpoint(
    directory: RunDirectory,
    step: int,
    shapes: Mapping[str, tuple[int, ...]],
    cuts: Sequence[Mapping[str, tuple[int, int]]],
    metrics: bytes = b"",
    seed: int = 0,
    **more: Any,
) -> dict[str, dict[str, Tensor]]:
    """Commit a checkpoint whose rank ``i`` holds the ranges ``cuts[i]``; returns the numbers that are in it."""
    values = numbers(shapes, seed)
    files = []
    for rank, cut in enumerate(cuts):
        tensors = {
            f"{kind}/{name}": values[kind][name][start:stop].clone()
            for name, (start, stop) in cut.items()
            for kind in KINDS
        }
        states, rest = rng.capture(torch.device("cpu"))
        metadata = {"starts": json.dumps({name: start for name, (start, _) in cut.items()}), "rng": rest}
        files.append(as_json(write_tensors(directory.staging(step) / rank_file(rank), tensors | states, metadata)))
    manifest = {
        "step": step,
        "world_size": len(cuts),
        "zero_stage": 3,
        "parameters": {name: list(shape) for name, shape in shapes.items()},
        "optimizer": {"type": "AdamW", "steps": step, "groups": [{"lr": 0.001}]},
        "loop": {
            "step": step,
            "seconds": 1.0,
            "guard": {"skipped": [], "spikes": [], "losses": [], "lr_scale": 1.0, "roll_backs": 0},
        },
        "metrics": as_json(write_rows(directory.staging(step) / METRICS, metrics)),
        "rows_since": [],
        "files": files,
    }
    directory.commit(step, manifest | more)
    return values


def run_directory(path: Path, steps: Sequence[int] = (), identity: Mapping[str, Any] | None = None) -> RunDirectory:
    """A run directory with one worker's checkpoints of two small parameters, and a metrics row for every step."""
    directory = RunDirectory(path, IDENTITY if identity is None else identity)
    directory.prepare()
    journal = Journal(path / METRICS)
    for step in range(1, max(steps, default=0) + 1):
        journal.append({"step": step, "split": "train", "loss": 1 / step})
        if step in steps:
            shapes = {"a": (3, 4), "b": (5,)}
            cut = {"a": (0, 12), "b": (0, 5)}
            write_checkpoint(directory, step, shapes, [cut], journal.rows(), seed=step)
    journal.close()
    return directory
