"""What of a run's description goes into the keys of its stages, so that nothing else makes a stage run again. Pure."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.catalogue import measure_label
from pipeline.config import RISK_METHODS, LossConfig, RunConfig
from pipeline.digests import digest_files
from pipeline.plan import model_dtype
from pipeline.plugins import function_digests

LIBRARIES = ("numpy", "torch", "transformers")
"""Their versions are part of every key: another one may compute other numbers."""

DATA_READING = (
    "format",
    "prompt_column",
    "chosen_column",
    "rejected_column",
    "id_column",
    "group_column",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "strict",
    "max_dropped_fraction",
)
DATA_TOKENS = (
    "max_train_pairs",
    "max_validation_pairs",
    "max_test_pairs",
    "max_prompt_tokens",
    "max_response_tokens",
    "overlong",
    "strict",
    "max_dropped_fraction",
)
REFERENCE_BATCHES = ("rows_per_shard", "batch_tokens", "threads")
EVALUATION_SAMPLES = ("split", "num_prompts", "seeds", "temperature", "max_new_tokens", "batch_size", "scorers")


def pick(section: Any, names: Collection[str]) -> dict[str, Any]:
    """The named options of a section, as JSON."""
    return {name: value for name, value in section.model_dump(mode="json").items() if name in names}


def with_dtype(run: RunConfig) -> RunConfig:
    """The run with ``auto`` decided once, for every process."""
    return run.model_copy(update={"model": run.model.model_copy(update={"dtype": model_dtype(run)})})


def device(run: RunConfig) -> str:
    """What computes: another kind of device gives other last digits. (The number of workers does too, within
    float32 rounding, but a run that goes on with more or fewer of them is meant to find its artefacts.)"""
    return f"workers {'cuda' if run.cluster.gpus_per_worker else 'cpu'}, actors " + (
        "cuda" if run.cluster.gpus_per_actor else "cpu"
    )


def effective_loss(run: RunConfig) -> dict[str, Any]:
    """The options of the loss that matter for its method, so that an unused one changes no key."""
    loss: LossConfig = run.loss
    options: dict[str, Any] = {"method": loss.method, "beta": loss.beta}
    if loss.method.endswith("2"):
        options["alpha"] = loss.alpha
    if loss.method in RISK_METHODS:
        options["risk"] = measure_label(run.risk.measure, run.risk.level, run.risk.weight)
        options |= function_digests("risk.measure", [run.risk.measure])
    return {"loss": options}


def library_versions(names: Collection[str]) -> dict[str, str]:
    """Installed versions, without importing anything."""
    return {name: importlib.metadata.version(name) for name in names}


def code_digest() -> str:
    """sha256 over this package's own files: which code made something."""
    package = Path(__file__).resolve().parent
    return digest_files(package, [path for end in ("py", "j2", "po") for path in package.rglob(f"*.{end}")])
