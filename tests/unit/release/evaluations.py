"""Evaluations for the gate's tests: arrays by hand, and files as the evaluate stage writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import EvaluationConfig
from pipeline.data.tables import write_table
from pipeline.evaluation.statistics import FloatArray
from pipeline.evaluation.summary import summarise
from pipeline.records import PairScores, ScoredSample
from pipeline.release.evidence import Evidence

RANGE = (-1.0, 1.0)
CONFIG = EvaluationConfig(seeds=(0, 1), bootstrap_resamples=50)


def evidence(own: FloatArray, other: FloatArray, **changed: Any) -> Evidence:
    """An evaluation with these scores ``[prompts, seeds]``, texts of 100 characters, and as many groups of two pairs
    without drift or a change of bits."""
    prompts, seeds = own.shape
    pairs = 2 * prompts
    same: dict[str, Any] = {
        "path": Path("hand"),
        "split": "test",
        "primary_scorer": "vader",
        "tail_fraction": 0.1,
        "incident_below": -0.5,
        "prompt_set": "set",
        "prompts": tuple(f"p{number}" for number in range(prompts)),
        "seeds": tuple(range(seeds)),
        "scores": own,
        "reference_scores": other,
        "repetition": np.zeros_like(own),
        "reference_repetition": np.zeros_like(own),
        "length": np.full_like(own, 100.0),
        "reference_length": np.full_like(own, 100.0),
        "pairs": tuple(f"r{number}" for number in range(pairs)),
        "groups": np.repeat(np.arange(prompts), 2),
        "drift": np.zeros(pairs),
        "bits": np.full(pairs, 300.0),
        "reference_bits": np.full(pairs, 300.0),
    }
    return Evidence(**{**same, **changed})


def written(directory: Path, samples: list[ScoredSample], pairs: list[PairScores]) -> Path:
    """The evaluation's three files, as the evaluate stage writes them."""
    directory.mkdir(parents=True)
    summary = summarise(samples, pairs, CONFIG, {"method": "ra_dpo2", "risk_label": "cvar@0.5"})
    write_table(directory / "samples.parquet", samples, ScoredSample)
    write_table(directory / "pairs.parquet", pairs, PairScores)
    (directory / "evaluation.json").write_text(json.dumps(summary, allow_nan=False))
    return directory


def sample(model: str, prompt: str, seed: int, score: float, text: str) -> ScoredSample:
    scores = {"vader": score, "profanity": 0.0, "repetition": 0.0, "length": float(len(text))}
    return ScoredSample(
        "policy" if model == "policy" else "reference",
        prompt,
        seed,
        f"About {prompt}:",
        text,
        True,
        scores,
        ["a"],
        [0.1],
        [0.01],
        [0.02],
        0.02,
        0,
        "set",
    )


def pair(row: str, group: str, drift: float = 2.0, rise: float = 0.0) -> PairScores:
    """A reference of 60 + 40 nats; the policy's are more by ``rise`` of them."""
    risk = {"kl": drift, "cvar@0.5": 2 * drift}
    return PairScores(row, group, -60.0 * (1 + rise), -60.0, -40.0 * (1 + rise), -40.0, risk, risk, 50, 40)
