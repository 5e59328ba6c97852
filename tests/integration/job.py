"""Running the real job in a process of its own, on a run small enough for a test.

Not a test: shared by the tests of this folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = (
    "data",
    "base",
    "tokens",
    "sft",
    "reference",
    "align",
    "sample_reference",
    "sample_policy",
    "evaluate",
    "gate",
    "register",
    "report",
)
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-object-store",
    "HF_TOKEN": "hf_canaryOfTheModelHub",
    "RA_DPO_GUARD_TOKEN": "canary-of-the-guard",
    "RA_DPO_WEBHOOK": "https://hooks.example.com/canary-of-the-webhook",
}
"""What must not be written down anywhere. No key of the audit trail: a signed trail can be read with it only."""
GOOD = ("bright", "warm", "clever", "moving", "funny", "splendid", "joyful")
BAD = ("dull", "cold", "clumsy", "tedious", "grim", "awful", "joyless")
THINGS = ("story", "cast", "score", "script", "ending", "camera", "pace")


def write_pairs(path: Path, groups: int = 40, per_group: int = 4) -> None:
    """Preference pairs as JSON lines: a friendly sentence over an unfriendly one."""
    rng = random.Random(0)

    def sentence(words: tuple[str, ...]) -> str:
        return f"The {rng.choice(THINGS)} is {rng.choice(words)} and the {rng.choice(THINGS)} is {rng.choice(words)}."

    rows = [
        {"prompt": f"What about film {group}?\n", "chosen": sentence(GOOD), "rejected": sentence(BAD)}
        for group in range(groups)
        for _ in range(per_group)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path) -> Path:
    """A recipe that runs every stage in seconds; returns its path."""
    write_pairs(folder / "pairs.jsonl")
    run: dict[str, Any] = {
        "data": {"path": str(folder / "pairs.jsonl"), "max_prompt_tokens": 16, "max_response_tokens": 40},
        "model": {
            "path": "build:gpt-neox",
            "build": {"vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "context_tokens": 64},
        },
        "sft": {"steps": 12, "batch_size": 16, "micro_batch_size": 8, "loss_on": "all", "optim": {"lr": 0.01}},
        "reference": {"rows_per_shard": 40},
        "train": {"epochs": 2, "max_steps": 10, "batch_size": 16, "micro_batch_size": 4, "eval_every_steps": 5},
        "evaluation": {
            "num_prompts": 6,
            "seeds": [0, 1],
            "max_new_tokens": 16,
            "batch_size": 6,
            "bootstrap_resamples": 200,
        },
        "wandb": {"mode": "disabled"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def environment() -> dict[str, str]:
    """The surroundings of a new user: nothing that points at a cluster or a tracker."""
    dropped = ("RAY_", "WANDB_", "PYTHONPATH", "COVERAGE")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def start(arguments: list[str], log: Path, script: str = "align.py") -> subprocess.Popen[str]:
    """Start a job in a process group of its own, its output in ``log``."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / script), *arguments],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )


def run(
    arguments: list[str],
    timeout_s: float = 280.0,
    script: str = "align.py",
    variables: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a job to its end, with ``variables`` in its environment besides; returns exit code and output."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | dict(variables or {}),
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def kill_in_stage(arguments: list[str], stage: str, after_s: float, log: Path, timeout_s: float = 240.0) -> None:
    """Start the job and kill its process group with SIGKILL ``after_s`` seconds into a stage."""
    process = start(arguments, log)
    deadline = time.monotonic() + timeout_s
    try:
        while f"> {stage}  started" not in log.read_text():
            assert process.poll() is None, f"the job ended before stage {stage}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"stage {stage} never started:\n{log.read_text()}"
            time.sleep(0.05)
        time.sleep(after_s)
        assert process.poll() is None, f"the job was over before it could be killed in {stage}:\n{log.read_text()}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def summary(storage: Path) -> dict[str, Any]:
    """The one summary.json under a storage, without its times and places."""
    (path,) = storage.glob("reports/*/summary.json")
    value: dict[str, Any] = json.loads(path.read_text())
    value.pop("timing")
    for name in ("root", "digest", "when"):  # where, and at what time
        value["release"].pop(name)
    return value
