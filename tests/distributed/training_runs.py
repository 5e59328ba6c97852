"""Preparing small trainings and running them, with and without Ray (not a test: shared by tests)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import caches
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.data.order import global_batch, num_batches
from pipeline.data.tables import read_table, write_table
from pipeline.models.contents import tokenizer_contents
from pipeline.records import PairTokens
from pipeline.training.spec import TrainSpec

RANK = Path(__file__).parent / "train_rank.py"


@dataclass(frozen=True)
class Material:
    """Model, tokens and reference that several trainings share."""

    root: Path
    reference: str
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self, name: str, **train: Any) -> TrainSpec:
        """A training below ``name``; options of ``train`` as in the configuration, ``checkpoint``, ``cluster`` and
        ``model`` taken out of them."""
        folder = self.root / name
        out = folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        run: dict[str, Any] = {
            "data": {"path": "unused"},
            "model": {"path": str(self.root / "model"), "dtype": "float32"} | train.pop("model", {}),
            "checkpoint": {"every_s": 3600.0, "every_steps": 4} | train.pop("checkpoint", {}),
            "cluster": train.pop("cluster", {}),
            "wandb": {"mode": "disabled"},
            "loss": {"beta": 0.5},
            "train": self.options | train,
        }
        return TrainSpec(
            kind="align",
            run=run,
            model_dir=str(self.root / "model"),
            tokens_dir=str(self.root / "tokens"),
            reference=self.reference,
            out_dir=str(out),
            run_dir=str(folder / "run"),
            identity={
                "options": run["train"],
                "libraries": {},
                "data": "tokens-1",
                "model": "model-1",
                "reference": Path(self.reference).name,
            },
            wandb_dir=str(folder / "wandb"),
            name="test",
        )


def prepare(root: Path, tokenizer: Path, pairs: int = 37, **train: Any) -> Material:
    """A model of two layers whose embedding is large enough to be partitioned, random pairs, and their reference."""
    tiny.save_model(root / "model", vocab_size=tiny.PARTITIONED_VOCAB)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(root / "model")
    rows = {"train": tiny.random_pairs(pairs), "validation": tiny.random_pairs(5, seed=1)}
    (root / "tokens").mkdir()
    for split, table in rows.items():
        write_table(root / "tokens" / f"{split}.parquet", table, PairTokens)
    model = AutoModelForCausalLM.from_pretrained(root / "model").eval()
    caches.write_cache(
        root / "reference",
        model,
        rows,
        tokenizer_contents(root / "model"),
        rows_per_shard=16,
        batch_tokens=300,
    )
    optim = {"lr": 2e-3, "warmup_steps": 3, "schedule": "linear"}
    options = {"max_steps": 14, "epochs": 1000, "batch_size": 8, "micro_batch_size": 3, "eval_every_steps": 7}
    return Material(root, str(root / "reference"), options | {"optim": optim} | train)


@dataclass(frozen=True)
class Job:
    """One attempt of a training. With ``resume`` it goes on from the newest checkpoint that verifies;
    ``abandon_after`` ends it after so many steps; ``poison`` spoils rows (see `train_rank.poison`)."""

    spec: TrainSpec
    resume: bool = False
    poison: dict[str, str] = field(default_factory=dict)
    abandon_after: int | None = None


def run_ranks(jobs: Sequence[Job], world_size: int, folder: Path, device: str = "cpu") -> list[dict[str, Any]]:
    """Run attempts one after the other in one group of plain processes; returns what came of each."""
    path = folder / f"jobs-{len(list(folder.glob('jobs-*.json')))}.json"
    path.write_text(json.dumps([asdict(job) for job in jobs]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(path), device],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=path.with_suffix(f".{rank}.log").open("w"),  # a pipe that nobody reads would fill
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join(path.with_suffix(f".{rank}.log").read_text() for rank in range(world_size))
    assert not any(codes), logs[-4000:]
    results: list[dict[str, Any]] = json.loads(path.with_suffix(".results").read_text())
    return results


def weights(spec: TrainSpec) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(Path(spec.out_dir) / "model")
    return dict(model.named_parameters())


def weights_digest(spec: TrainSpec) -> str:
    """Digest of the file with the final weights."""
    return hashlib.sha256((Path(spec.out_dir) / "model" / "model.safetensors").read_bytes()).hexdigest()


def metrics(spec: TrainSpec) -> list[dict[str, Any]]:
    text = (Path(spec.out_dir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def rows_of_steps(material: Material, steps: int, batch_size: int) -> list[list[str]]:
    """Row ids of the global batch of each step."""
    pairs = read_table(material.root / "tokens" / "train.parquet", PairTokens)
    per_epoch = num_batches(len(pairs), batch_size)
    return [
        [pairs[row].row_id for row in global_batch(len(pairs), batch_size, 0, *divmod(step, per_epoch))]
        for step in range(steps)
    ]


def rows_digest(ids: list[str]) -> str:
    """What a row of the metrics calls its batch."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
