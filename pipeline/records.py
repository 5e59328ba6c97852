"""What passes between stages: the records inside artefacts, with their columns, shapes and units.

Stages exchange these records and artefact paths, never tensors or actor handles. Rows are always found
by ``row_id``, never by position. An artefact's files, by stage:

``data``       train/validation/test.parquet of `PairRow`; sft.parquet of `TextRow`;
               dropped.jsonl of `DroppedRow`; stats.json
``base``       a Hugging Face model directory (only when the run builds its own model)
``sft``        model/ (Hugging Face directory), metrics.jsonl
``tokens``     train/validation/test.parquet of `PairTokens`; sft.parquet of `TextTokens`;
               prompts-validation/test.parquet of `PromptTokens`; dropped.jsonl of `DroppedRow`; stats.json
``reference``  cache.json, the key of the cache in reference.root (its files: pipeline.reference.layout)
``align``      model/ (Hugging Face directory), metrics.jsonl, training.json
``sample_*``   samples.parquet of `SampleRow`
``evaluate*``  samples.parquet of `ScoredSample`, pairs.parquet of `PairScores`, evaluation.json
``gate``       gate.json (`pipeline.release.gate.Decision`)
``register``   release.json: version, audit record, where production went
``report``     report.html, summary.json
``compare_*``  of jobs/compare.py: samples.parquet of `SampleRow`; A.parquet, B.parquet of `ScoredSample`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HeldOut = Literal["validation", "test"]
HELD_OUT: tuple[HeldOut, ...] = ("validation", "test")
"""Splits that a policy may be judged on: one to choose by, one that no choice has seen."""


@dataclass(frozen=True)
class PairRow:
    """One preference pair as text.

    ``prompt`` is plain text, or, when ``chat`` is true, a JSON list of messages
    ``[{"role": ..., "content": ...}]`` that the tokenizer's chat template renders later; ``chosen`` and
    ``rejected`` are the answer's text in both cases. ``group`` decides the split: rows of one group never
    stand in two splits. Example: ``PairRow("9f2c...", "abandon", "Review of abandon:\\n", "A joy.", "Dull.", False)``.
    """

    row_id: str
    group: str
    prompt: str
    chosen: str
    rejected: str
    chat: bool


@dataclass(frozen=True)
class TextRow:
    """One text for supervised fine-tuning (training groups only): prompt, then response."""

    row_id: str
    group: str
    prompt: str
    response: str
    chat: bool


@dataclass(frozen=True)
class DroppedRow:
    """A row that is not used, and why: ``where`` is the file and row a person can look up."""

    where: str
    row_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class PairTokens:
    """One tokenised pair. The ids of prompt and responses are int32 and were tokenised apart; a response
    ends with one EOS unless it was truncated. ``content`` is the sha256 over the three id lists."""

    row_id: str
    group: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    content: str


@dataclass(frozen=True)
class TextTokens:
    """One tokenised fine-tuning text."""

    row_id: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class PromptTokens:
    """One held-out prompt to sample from (one per group of its split); ``prompt_id`` is the sha256 of its ids,
    shortened."""

    prompt_id: str
    group: str
    prompt: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class SampleRow:
    """One sampled output. ``response_ids`` include the EOS when one was sampled; ``scores`` by scorer name."""

    prompt_id: str
    seed: int
    prompt: str
    text: str
    prompt_ids: list[int]
    response_ids: list[int]
    finished: bool
    scores: dict[str, float]


@dataclass(frozen=True)
class ScoredSample:
    """A `SampleRow` of one of the two models with what both models say of every token (nats).

    ``log_ratio``: log pi(token) - log pi_ref(token). ``kl`` and ``risk``: KL and the trained risk measure of
    log pi_ref/pi over the vocabulary at that position, for a policy and a reference sample alike.
    """

    model: Literal["reference", "policy"]
    prompt_id: str
    seed: int
    prompt: str
    text: str
    finished: bool
    scores: dict[str, float]
    tokens: list[str]
    log_ratio: list[float]
    kl: list[float]
    risk: list[float]
    max_risk: float
    max_risk_position: int
    prompt_set: str
    """sha256 over the prompt ids of the whole set, equal for both models."""


@dataclass(frozen=True)
class PairScores:
    """One held-out pair seen by both models; sums over response tokens, in nats.

    ``risk`` maps a measure's label ("kl", "cvar@0.5", ...) to the sequential risk on chosen and rejected.
    """

    row_id: str
    group: str
    chosen_logp: float
    chosen_ref_logp: float
    rejected_logp: float
    rejected_ref_logp: float
    chosen_risk: dict[str, float]
    rejected_risk: dict[str, float]
    chosen_bytes: int
    rejected_bytes: int
