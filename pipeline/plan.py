"""What a run will cost, in numbers: rows, tokens, bytes, optimiser steps, samples.

Pure arithmetic over what is known of the data (`TokenCounts`) and of the model (`ModelShape`); where those come
from, and how sure they are, is the business of `pipeline.survey`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import BuildConfig, RunConfig, Tier
from pipeline.records import SPLITS, Split

TIERS: tuple[Tier, ...] = ("hidden", "scalar")

REFERENCE_SPLITS: tuple[Split, ...] = ("train", "validation")
"""Splits that the reference pass precomputes; test pairs are scored with both models at hand."""

_ESTIMATE_MARGIN = 1.2
"""An estimate refuses a run only when it exceeds the free space by this factor."""

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class TokenCounts:
    """Rows and tokens after tokenisation and after ``data.max_*_pairs``."""

    pairs: Mapping[Split, int]
    """Preference pairs."""
    prompt_tokens: Mapping[Split, int]
    """Tokens of the pairs' prompts, each pair's counted once."""
    response_tokens: Mapping[Split, int]
    """Tokens of chosen and rejected together, EOS included."""
    texts: int
    """Fine-tuning texts."""
    text_tokens: int
    """Tokens of the texts' prompts and responses, EOS included."""
    prompts: int
    """Different test prompts to sample from."""
    exact: bool
    """Whether the run will find exactly these numbers."""
    basis: str
    """Where the numbers come from, for the reader."""


@dataclass(frozen=True)
class ModelShape:
    """Size of the model that is trained."""

    parameters: int
    """Numbers in its weight files; weights shared by embedding and head count once."""
    hidden_size: int
    """d, numbers in one final hidden state."""
    vocab_size: int
    """V, rows of the output head."""
    exact: bool
    basis: str


@dataclass(frozen=True)
class Work:
    """The part of the cost that depends on the data."""

    counts: TokenCounts
    reference_bytes: Mapping[Tier, int]
    """Bytes of the reference artefact for each tier, whatever the configured one is."""
    sft_steps: int
    """Optimiser steps of fine-tuning, 0 without a budget."""
    sft_steps_exact: bool
    """False for a budget in tokens: the lengths of the texts in the last batches decide."""
    align_steps: int
    """Optimiser steps of alignment."""
    samples_per_model: int
    """Outputs sampled from each of reference and policy."""


@dataclass(frozen=True)
class Cost:
    """What a run takes. Bytes are bytes of files under the storage."""

    model: ModelShape
    checkpoint_bytes: int
    """Weights of one saved model, in the dtype that is trained."""
    checkpoints_to_write: int
    """Models that the stages still to do will save."""
    models_to_write_bytes: int
    reference_to_write_bytes: int
    """The reference artefact, 0 when it is committed (or nothing is known about the data)."""
    work: Work | None
    """None while nothing is known about the data (a hub data set that was never read)."""

    @property
    def to_write_bytes(self) -> int:
        """What the stages still to do will store. Tables and the report are small beside it and left out."""
        return self.models_to_write_bytes + self.reference_to_write_bytes

    @property
    def exact(self) -> bool:
        """Whether the bytes follow from exact counts."""
        return self.model.exact and (self.work is None or self.work.counts.exact)


def cost(run: RunConfig, counts: TokenCounts | None, model: ModelShape, to_do: Collection[str]) -> Cost:
    """The cost of a run of which the stages named in ``to_do`` are not committed yet."""
    work = None if counts is None else _work(run, counts, model)
    weights = model.parameters * dtype_bytes(run.model.dtype, run.cluster.gpus_per_worker > 0)
    sizes = {"base": model.parameters * _FLOAT32_BYTES, "sft": weights, "align": weights}
    models = [size for stage, size in sizes.items() if stage in to_do]
    caches: Mapping[Tier, int] = {} if work is None or "reference" not in to_do else work.reference_bytes
    return Cost(
        model=model,
        checkpoint_bytes=weights,
        checkpoints_to_write=len(models),
        models_to_write_bytes=sum(models),
        reference_to_write_bytes=caches.get(run.reference.tier, 0),
        work=work,
    )


def _work(run: RunConfig, counts: TokenCounts, model: ModelShape) -> Work:
    state_bytes = dtype_bytes(run.model.dtype, run.cluster.gpus_per_actor > 0)
    return Work(
        counts=counts,
        reference_bytes={tier: reference_bytes(tier, counts, model, state_bytes) for tier in TIERS},
        sft_steps=sft_steps(run, counts),
        sft_steps_exact=run.sft.tokens == 0,
        align_steps=align_steps(run, counts),
        samples_per_model=min(run.evaluation.num_prompts, counts.prompts) * len(run.evaluation.seeds),
    )


def reference_bytes(tier: Tier, counts: TokenCounts, model: ModelShape, state_bytes: int) -> int:
    """Bytes of the reference artefact over `REFERENCE_SPLITS`, without the ids of its rows.

    Both tiers hold two float32 log-probabilities a pair. The hidden tier adds d numbers of ``state_bytes`` bytes
    for every response token, and the head ``[V, d]`` once.
    """
    pairs = sum(counts.pairs[split] for split in REFERENCE_SPLITS)
    logps = 2 * _FLOAT32_BYTES * pairs
    if tier == "scalar":
        return logps
    tokens = sum(counts.response_tokens[split] for split in REFERENCE_SPLITS)
    return logps + (tokens + model.vocab_size) * model.hidden_size * state_bytes


def sft_steps(run: RunConfig, counts: TokenCounts) -> int:
    """Optimiser steps of the fine-tuning budget; for a budget in tokens, with batches of mean length."""
    if run.sft.tokens == 0 or counts.text_tokens == 0:
        return run.sft.steps
    batches = math.ceil(counts.texts / run.sft.batch_size)
    return math.ceil(run.sft.tokens * batches / counts.text_tokens)


def align_steps(run: RunConfig, counts: TokenCounts) -> int:
    """Optimiser steps of alignment: all epochs, a short last batch included, or ``train.max_steps``."""
    steps = run.train.epochs * math.ceil(counts.pairs["train"] / run.train.batch_size)
    return min(steps, run.train.max_steps or steps)


def dtype_bytes(dtype: Literal["auto", "float32", "bfloat16"], on_gpu: bool) -> int:
    """Bytes of one number of the model where it runs: ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else _FLOAT32_BYTES


def built_shape(build: BuildConfig) -> ModelShape:
    """The GPT-NeoX that `pipeline.models.build` will make, if the texts fill its vocabulary.

    Embedding and head are ``[V, d]`` each; a layer has attention (4 d^2 + 4 d), an MLP of width 4 d (8 d^2 + 5 d)
    and two norms (4 d); one more norm (2 d) ends the stack.
    """
    d, v = build.hidden_size, build.vocab_size
    parameters = 2 * v * d + build.num_layers * (12 * d * d + 13 * d) + 2 * d
    return ModelShape(
        parameters, d, v, exact=False, basis="from model.build; smaller if the texts do not fill the vocabulary"
    )


def counts_from_stats(stats: Mapping[str, Any]) -> TokenCounts:
    """The counts in the stats.json of a committed ``tokens`` artefact."""
    tokens = stats["tokens"]
    return TokenCounts(
        pairs={split: stats["rows"][split] for split in SPLITS},
        prompt_tokens={split: tokens[split]["prompt"] for split in SPLITS},
        response_tokens={split: tokens[split]["chosen"] + tokens[split]["rejected"] for split in SPLITS},
        texts=stats["sft"]["rows"],
        text_tokens=sum(stats["sft"]["tokens"].values()),
        prompts=stats["prompts"],
        exact=True,
        basis="from the committed tokens",
    )


def refusal(costs: Cost, run: RunConfig, free_bytes: int, storage: str) -> str | None:
    """Why the run cannot fit on the disk of its storage and what to do, or None when it can.

    Only what is clear refuses: exact bytes beyond the free ones, or an estimate beyond them by a fifth.
    """
    if costs.to_write_bytes <= free_bytes * (1 if costs.exact else _ESTIMATE_MARGIN):
        return None
    remedies = ["free some space", "set --storage to another disk"]
    if costs.reference_to_write_bytes > free_bytes:
        remedies.append("lower --data.max_train_pairs")
        if run.reference.tier == "hidden":
            remedies.append("set --reference.tier scalar with --loss.method dpo")
    about = "" if costs.exact else "about "
    return (
        f"storage {storage} has {bytes_text(free_bytes)} free, but the run would write {about}"
        f"{bytes_text(costs.to_write_bytes)} (reference cache {bytes_text(costs.reference_to_write_bytes)}, models "
        f"{bytes_text(costs.models_to_write_bytes)}): {', '.join(remedies[:-1])}, or {remedies[-1]}"
    )


def bytes_text(count: int) -> str:
    """Bytes for a reader, in decimal units: ``512 B``, ``63.7 MB``, ``1.6 TB``."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"
