"""Preparing small trainings and running them, with and without Ray (not a test: shared by tests)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import caches
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.checkpoints.directory import RunDirectory
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
    options = {"max_steps": 14, "epochs": 100, "batch_size": 8, "micro_batch_size": 3, "eval_every_steps": 7}
    return Material(root, str(root / "reference"), options | {"optim": optim} | train)


def run_ranks(
    spec: TrainSpec,
    world_size: int,
    *,
    resume: bool = False,
    poison: dict[str, str] | None = None,
    die_after: int | None = None,
    said: list[str] | None = None,
) -> str:
    """Run one attempt of a training as plain processes; returns their output. With ``resume`` it goes on from the
    newest checkpoint that verifies; ``die_after`` kills every rank after so many steps."""
    directory = RunDirectory(Path(spec.run_dir), spec.identity)
    directory.prepare()
    found = directory.newest((said if said is not None else []).append) if resume else None
    path = Path(spec.run_dir).parent / "options.json"
    path.write_text(
        json.dumps(
            {
                "spec": asdict(spec),
                "resume": found and found.step,
                "poison": poison or {},
                "die_after": die_after,
            }
        )
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(path)],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = "\n".join(process.communicate(timeout=240)[0] for process in processes)
    if die_after is None:
        assert all(process.returncode == 0 for process in processes), outputs[-4000:]
    else:
        assert all(process.returncode for process in processes), outputs[-4000:]
    return outputs


def other_output(spec: TrainSpec, name: str) -> TrainSpec:
    """The same training with another place for its result."""
    out = Path(spec.out_dir).with_name(name)
    out.mkdir(exist_ok=True)
    return replace(spec, out_dir=str(out))


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
