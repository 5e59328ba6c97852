"""What a run will cost, in numbers: rows, tokens, bytes, optimiser steps, samples.

Pure arithmetic over what is known of the data (`TokenCounts`) and of the model (`ModelShape`); where those come
from, and how sure they are, is the business of `pipeline.survey`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import BuildConfig, RunConfig
from pipeline.preflight import CHECKPOINT_BYTES, checkpoints_held
from pipeline.records import SPLITS, HeldOut, Split
from pipeline.reference.key import SPLITS as REFERENCE_SPLITS
from pipeline.tiers import KINDS, CacheShape, Kind, cache_bytes, chosen_kind

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
    prompts: Mapping[HeldOut, int]
    """Different prompts to sample from."""
    id_bytes: Mapping[Split, int]
    """Bytes of the pairs' row ids in a reference cache (`pipeline.tiers.id_bytes`)."""
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
    head_bias: bool = False
    """Whether the output head adds a number for every token."""


@dataclass(frozen=True)
class Work:
    """The part of the cost that depends on the data."""

    counts: TokenCounts
    reference_bytes: Mapping[Kind, int]
    """Bytes of the reference cache in every tier, whatever the run's is; at most, where ``reference.top_mass``
    decides."""
    reference_least_bytes: int
    """The least that the run's own tier can take."""
    reference_tokens: int
    """Tokens that the reference pass computes: prompt, chosen and rejected of every pair, a prompt once."""
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
    saved_model_bytes: int
    """Weights of one saved model, in the dtype that is trained."""
    models_to_write: int
    """Models that the stages still to do will save."""
    models_to_write_bytes: int
    checkpoint_bytes: int
    """One checkpoint of a training under way: float32 weights and Adam's two moments."""
    checkpoints_held: int
    """Checkpoints that lie in the storage at one time, at most; 0 when no training is to do. They are removed when
    their training's result is committed, and one training runs at a time."""
    checkpoints_to_write_bytes: int
    """What these will take beside those that a killed training has left."""
    reference_to_write_bytes: int
    """What the reference cache still lacks, 0 when the stage is committed or nothing is known about the data; at
    most, where ``reference.top_mass`` decides."""
    reference_to_write_least_bytes: int
    """The least that this can be."""
    work: Work | None
    """None while nothing is known about the data (a hub data set that was never read)."""

    @property
    def to_write_bytes(self) -> int:
        """What the stages still to do will store for good. Tables and the report are small beside it and left out."""
        return self.models_to_write_bytes + self.reference_to_write_bytes

    @property
    def exact(self) -> bool:
        """Whether the bytes follow from exact counts."""
        return self.model.exact and (self.work is None or self.work.counts.exact)


def cost(
    run: RunConfig,
    counts: TokenCounts | None,
    model: ModelShape,
    to_do: Collection[str],
    *,
    reference_there_bytes: int = 0,
    checkpoints_there_bytes: int = 0,
) -> Cost:
    """The cost of a run.

    Args:
        to_do: names of the stages that are not committed yet.
        reference_there_bytes: what is there already of the run's own reference cache.
        checkpoints_there_bytes: what is there already of the checkpoints of its trainings.
    """
    work = None if counts is None else _work(run, counts, model)
    weights = model.parameters * dtype_bytes(run)
    sizes = [("base", model.parameters * _FLOAT32_BYTES), ("sft", weights), ("align", weights)]
    if run.registry.root is None:
        sizes += [("register", weights), ("register", weights)]  # copies of the policy, and of a new reference
    models = [size for stage, size in sizes if stage in to_do]
    checkpoint, held = model.parameters * CHECKPOINT_BYTES, _checkpoints_held(run, to_do)
    most = least = 0
    if work is not None and "reference" in to_do:
        most = max(0, work.reference_bytes[chosen_kind(run.reference)] - reference_there_bytes)
        least = max(0, work.reference_least_bytes - reference_there_bytes)
    return Cost(
        model=model,
        saved_model_bytes=weights,
        models_to_write=len(models),
        models_to_write_bytes=sum(models),
        checkpoint_bytes=checkpoint,
        checkpoints_held=held,
        checkpoints_to_write_bytes=max(0, held * checkpoint - checkpoints_there_bytes),
        reference_to_write_bytes=most,
        reference_to_write_least_bytes=least,
        work=work,
    )


def _checkpoints_held(run: RunConfig, to_do: Collection[str]) -> int:
    """Checkpoints beside everything else: when the last training that is to do runs, the rest is there."""
    if "align" in to_do:
        return checkpoints_held(run.checkpoint.keep, run.train.guard)
    return checkpoints_held(run.checkpoint.keep, run.sft.guard) if "sft" in to_do else 0


def _work(run: RunConfig, counts: TokenCounts, model: ModelShape) -> Work:
    shape = cache_shape(run, counts, model)
    return Work(
        counts=counts,
        reference_bytes={kind: cache_bytes(kind, run.reference, shape) for kind in KINDS},
        reference_least_bytes=cache_bytes(chosen_kind(run.reference), run.reference, shape, least=True),
        reference_tokens=_over_reference(counts.prompt_tokens) + _over_reference(counts.response_tokens),
        sft_steps=sft_steps(run, counts),
        sft_steps_exact=run.sft.tokens == 0,
        align_steps=align_steps(run, counts),
        samples_per_model=min(run.evaluation.num_prompts, counts.prompts[run.evaluation.split])
        * len(run.evaluation.seeds),
    )


def cache_shape(run: RunConfig, counts: TokenCounts, model: ModelShape) -> CacheShape:
    """What the bytes of the run's reference cache follow from."""
    files = [math.ceil(counts.pairs[split] / run.reference.rows_per_shard) for split in REFERENCE_SPLITS]
    return CacheShape(
        pairs=_over_reference(counts.pairs),
        files=sum(files),
        id_bytes=_over_reference(counts.id_bytes),
        positions=_over_reference(counts.response_tokens),
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        head_bias=model.head_bias,
        number_bytes=dtype_bytes(run),
    )


def _over_reference(amounts: Mapping[Split, int]) -> int:
    return sum(amounts[split] for split in REFERENCE_SPLITS)


def sft_steps(run: RunConfig, counts: TokenCounts) -> int:
    """Optimiser steps of the fine-tuning budget; for a budget in tokens, with batches of mean length."""
    if run.sft.tokens == 0 or counts.text_tokens == 0:
        return run.sft.steps
    batches = math.ceil(counts.texts / run.sft.batch_size)
    return math.ceil(run.sft.tokens * batches / counts.text_tokens)


def align_steps(run: RunConfig, counts: TokenCounts) -> int:
    """Optimiser steps of alignment: all epochs, a short last batch included, or ``train.max_steps``."""
    pairs = counts.pairs["train"] * run.train.data_fraction  # about: whole groups are taken
    steps = run.train.epochs * math.ceil(pairs / run.train.batch_size)
    return min(steps, run.train.max_steps or steps)


def model_dtype(run: RunConfig) -> Literal["float32", "bfloat16"]:
    """The dtype of every process of a run: ``auto`` is bfloat16 when anything runs on a GPU."""
    if run.model.dtype != "auto":
        return run.model.dtype
    on_gpu = run.cluster.gpus_per_worker > 0 or run.cluster.gpus_per_actor > 0
    return "bfloat16" if on_gpu else "float32"


def dtype_bytes(run: RunConfig) -> int:
    """Bytes of one number in the run's dtype."""
    return 2 if model_dtype(run) == "bfloat16" else _FLOAT32_BYTES


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


def counts_from_stats(stats: Mapping[str, Any], id_bytes: Mapping[Split, int]) -> TokenCounts:
    """The counts in the stats.json of a ``tokens`` artefact; ``id_bytes`` as in `TokenCounts`."""
    tokens = stats["tokens"]
    return TokenCounts(
        pairs={split: stats["rows"][split] for split in SPLITS},
        prompt_tokens={split: tokens[split]["prompt"] for split in SPLITS},
        response_tokens={split: tokens[split]["chosen"] + tokens[split]["rejected"] for split in SPLITS},
        texts=stats["sft"]["rows"],
        text_tokens=sum(stats["sft"]["tokens"].values()),
        prompts=stats["prompts"],
        id_bytes=id_bytes,
        exact=True,
        basis="from the committed tokens",
    )
