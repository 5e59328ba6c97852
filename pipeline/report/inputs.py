"""What a report is made from: plain data of finished stages, nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.records import ScoredSample
from pipeline.release_config import Language

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that report.html and summary.json show.

    ``evaluation`` is the content of evaluation.json. ``metrics`` are rows of the align stage's metrics.jsonl
    (``step``, ``split`` "train" or "validation", and any of loss, reward_accuracy, chosen_kl, rejected_kl,
    chosen_risk, rejected_risk, lr, grad_norm, ...); ``sft_metrics`` those of fine-tuning (step, loss, tokens).
    ``stages`` has one row a stage: name, key, seconds, reused. ``versions`` maps a library, or "machine", to
    text. ``notes`` are sentences for the data section. ``language`` is the report's; summary.json stays English.
    ``verdict`` is the verdict with its sentences in that language, None for that of the evaluation.
    ``gate`` (gate.json), the headline and sentences of its decision in that language, and ``release`` (release.json)
    are None for a run without a registry.
    """

    recipe: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    samples: list[ScoredSample]
    metrics: list[Row]
    sft_metrics: list[Row] = field(default_factory=list)
    data_stats: dict[str, Any] = field(default_factory=dict)
    token_stats: dict[str, Any] = field(default_factory=dict)
    stages: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    language: Language = "en"
    verdict: dict[str, Any] | None = None
    gate: Row | None = None
    gate_words: tuple[str, list[str]] | None = None
    release: Row | None = None
