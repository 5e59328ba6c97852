"""A DeepSpeed worker group follows the plain single-process computation of the same global batches."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import LossConfig, OptimConfig, RiskConfig
from pipeline.data.order import global_batch, num_batches
from pipeline.training.schedule import learning_rate

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import caches
import tiny

WORKER = Path(__file__).parent / "zero_worker.py"
STEPS, BATCH, PAIRS = 20, 8, 37
OPTIM = {"lr": 2e-3, "warmup_steps": 3, "max_grad_norm": 1.0}


def run_workers(options: dict, world_size: int, folder: Path, env: dict[str, str] | None = None) -> list[dict]:
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps(options | {"out": str(folder)}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "options.json")],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
            }
            | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)[-4000:]
    assert not (folder / "extensions").exists(), "a worker compiled an extension"
    return json.loads((folder / "rows.json").read_text())


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Model, its reference artefact, and the plain loss curve with a live reference."""
    root = tmp_path_factory.mktemp("zero")
    tiny.save_model(root / "model", vocab_size=tiny.PARTITIONED_VOCAB, tied=request.param)
    pairs = tiny.random_pairs(PAIRS)
    reference = AutoModelForCausalLM.from_pretrained(root / "model").eval()
    caches.write_cache(root / "reference", reference, {"train": pairs}, rows_per_shard=16, batch_tokens=300)

    loss, risk, optim = LossConfig(beta=0.5), RiskConfig(), OptimConfig(**OPTIM)
    policy = AutoModelForCausalLM.from_pretrained(root / "model")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=optim.lr, weight_decay=0.0)
    curve = []
    for step in range(STEPS):
        epoch, index = divmod(step, num_batches(PAIRS, BATCH))
        batch = [pairs[row] for row in global_batch(PAIRS, BATCH, 0, epoch, index)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, STEPS)
        value = tiny.plain_loss(policy, reference, batch, loss, risk)
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.max_grad_norm)
        optimizer.step()
        curve.append((value.item(), norm.item()))
    return {"root": root, "curve": curve, "policy": policy, "loss": loss, "risk": risk}


# Tied weights are a matter of partitioning, so one run with them is enough, which accumulates too. One worker is
# compared with two in test_resume.
@pytest.mark.parametrize(
    ("prepared", "zero_stage", "world_size", "micro_batch_size"),
    [(False, 3, 2, 4), (False, 0, 2, 4), (True, 3, 2, 2)],
    indirect=["prepared"],
)
def test_follows_the_plain_loss_curve(
    prepared: dict, tmp_path: Path, zero_stage: int, world_size: int, micro_batch_size: int
) -> None:
    """20 steps over two and a half epochs with a short last batch, with and without accumulation."""
    rows = run_workers(
        {
            "model": str(prepared["root"] / "model"),
            "reference": str(prepared["root"] / "reference"),
            "num_pairs": PAIRS,
            "steps": STEPS,
            "batch_size": BATCH,
            "micro_batch_size": micro_batch_size,
            "optim": OPTIM | {"zero_stage": zero_stage},
            "loss": prepared["loss"].model_dump(),
            "risk": prepared["risk"].model_dump(),
        },
        world_size,
        tmp_path / "run",
    )
    steps = [row for row in rows if row["split"] == "train"]
    assert len(steps) == STEPS
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for row, (loss, norm) in zip(steps, prepared["curve"], strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-4), f"step {row['step']}"
        assert row["grad_norm"] == pytest.approx(norm, rel=2e-3), f"step {row['step']}"
    assert steps[-1]["loss"] < 0.6, "it must have learnt something, or the comparison is empty"

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    for (name, ours), (_, theirs) in zip(saved.named_parameters(), prepared["policy"].named_parameters(), strict=True):
        # Softmax attention does not see a shift of its keys: the gradient of their bias is rounding noise, which
        # Adam scales up to full steps.
        if not name.endswith("query_key_value.bias"):
            assert torch.allclose(ours, theirs, atol=2e-3), name
    validation = [row for row in rows if row["split"] == "validation"]
    assert [row["step"] for row in validation] == [7, 14, 20]
    assert validation[-1]["pairs"] == PAIRS
