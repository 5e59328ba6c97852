"""What an evaluation says of one model, read from its files and checked, as the gate needs it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.tables import read_table
from pipeline.errors import ArtifactError, EvaluationError
from pipeline.evaluation.scorers import length, repetition
from pipeline.evaluation.statistics import FloatArray
from pipeline.records import PairScores, ScoredSample

DRIFT = "kl"
"""The measure of `PairScores.chosen_risk` that drift is."""

_SAME_SCORE = 1e-6
_TABLES = ("samples.parquet", "pairs.parquet")

T = TypeVar("T", ScoredSample, PairScores)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model's evaluation against the reference.

    Arrays over samples are ``[prompts, seeds]``, in the order of ``prompts`` and ``seeds``; those over held-out pairs
    are ``[pairs]``, ordered by group and row.
    """

    path: Path
    """The directory that it was read from, for messages."""
    split: str
    primary_scorer: str
    tail_fraction: float
    incident_below: float
    prompt_set: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: FloatArray
    """Primary scores, larger is better."""
    reference_scores: FloatArray
    repetition: FloatArray
    """Share of repeated four-word sequences of the text, 0 to 1."""
    reference_repetition: FloatArray
    length: FloatArray
    """Characters of the text."""
    reference_length: FloatArray
    pairs: tuple[str, ...]
    """Row ids."""
    groups: NDArray[np.int64]
    """Number of the pair's group, from 0."""
    drift: FloatArray
    """Sequential KL from the reference on the chosen response, nats."""
    bits: FloatArray
    """Of both responses, -log2 of their probability."""
    reference_bits: FloatArray

    @property
    def num_groups(self) -> int:
        return int(self.groups[-1]) + 1

    def by_group(self, values: FloatArray) -> FloatArray:
        """Sums ``[groups]`` of values ``[pairs]``."""
        return np.asarray(np.bincount(self.groups, weights=values), dtype=np.float64)


def read_evidence(evaluation_dir: Path) -> Evidence:
    """The evaluation that the evaluate stage wrote to a directory: evaluation.json, samples.parquet, pairs.parquet.

    Raises:
        EvaluationError: naming the file, when one is missing, cannot be read, or does not fit the others.
    """
    summary = _summary(evaluation_dir / "evaluation.json")
    samples = _table(evaluation_dir / _TABLES[0], ScoredSample)
    pairs = sorted(_table(evaluation_dir / _TABLES[1], PairScores), key=lambda pair: (pair.group, pair.row_id))
    prompts, seeds = tuple(sorted({row.prompt_id for row in samples})), tuple(sorted({row.seed for row in samples}))
    if list(seeds) != sorted(summary["seeds"]) or len(prompts) != summary["num_prompts"]:
        raise EvaluationError(
            f"{evaluation_dir / _TABLES[0]} holds {len(prompts)} prompts with seeds {list(seeds)}, but evaluation.json "
            f"is of {summary['num_prompts']} with {summary['seeds']}: evaluate the policy again"
        )
    found: dict[str, dict[str, Any]] = {}
    for model in ("policy", "reference"):
        rows = _grid([row for row in samples if row.model == model], model, prompts, seeds, summary, evaluation_dir)
        texts = [row.text for row in rows]
        columns = {
            "scores": [row.scores[summary["primary_scorer"]] for row in rows],
            "repetition": repetition([], texts),
            "length": length([], texts),
        }
        shape = len(prompts), len(seeds)
        found[model] = {name: np.array(values, dtype=np.float64).reshape(shape) for name, values in columns.items()}
    return Evidence(
        path=evaluation_dir,
        split=summary["split"],
        primary_scorer=summary["primary_scorer"],
        tail_fraction=summary["tail_fraction"],
        incident_below=summary["incident_below"],
        prompt_set=summary["prompt_set"],
        prompts=prompts,
        seeds=seeds,
        **found["policy"],
        **{f"reference_{name}": values for name, values in found["reference"].items()},
        **_of_pairs(pairs, evaluation_dir / _TABLES[1]),
    )


def check_comparable(candidate: Evidence, incumbent: Evidence) -> None:
    """Refuse two evaluations that cannot be paired.

    Raises:
        EvaluationError: naming all that differs.
    """
    settings = ("split", "primary_scorer", "tail_fraction", "incident_below", "prompt_set", "seeds")
    values = [(name, getattr(candidate, name), getattr(incumbent, name)) for name in settings]
    different = [f"{name} ({_brief(mine)} and {_brief(other)})" for name, mine, other in values if mine != other]
    if candidate.pairs != incumbent.pairs or not np.array_equal(candidate.groups, incumbent.groups):
        different.append(f"held-out pairs ({len(candidate.pairs)} and {len(incumbent.pairs)}, not the same rows)")
    if not different:
        apart = np.abs(candidate.reference_scores - incumbent.reference_scores) > _SAME_SCORE
        apart |= candidate.reference_length != incumbent.reference_length
        if candidate.prompts != incumbent.prompts:
            different.append("prompts")
        elif apart.any():
            different.append(f"the reference's outputs ({int(apart.sum())} of {apart.size})")
    if different:
        raise EvaluationError(
            f"the evaluations of the candidate ({candidate.path}) and of what is in production ({incumbent.path}) "
            f"cannot be compared, because these differ: {', '.join(different)}. Evaluate both against the same "
            "reference on the same prompts"
        )


def _brief(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _summary(path: Path) -> dict[str, Any]:
    """The settings of evaluation.json, each of its type."""
    kinds: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("split", "primary_scorer", "prompt_set"), str),
        **dict.fromkeys(("tail_fraction", "incident_below"), float),
        "num_prompts": int,
        "seeds": lambda seeds: [int(seed) for seed in seeds],
    }
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: kind(content[name]) for name, kind in kinds.items()}
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}): evaluate the policy first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path} is no evaluation of this version ({type(error).__name__}: {error}): evaluate the policy again"
        ) from error


def _table(path: Path, kind: type[T]) -> list[T]:
    try:
        rows = read_table(path, kind)
    except ArtifactError as error:
        raise EvaluationError(f"the evaluation cannot be used: {error}") from error
    if not rows:
        raise EvaluationError(f"{path} holds no rows: evaluate the policy again")
    return rows


def _grid(
    rows: list[ScoredSample],
    model: str,
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    summary: dict[str, Any],
    directory: Path,
) -> list[ScoredSample]:
    """A model's samples, prompt by prompt and seed by seed: each once, of the right prompts, with a finite score."""
    where, scorer = directory / _TABLES[0], summary["primary_scorer"]
    by_key = {(row.prompt_id, row.seed): row for row in rows}
    keys = [(prompt, seed) for prompt in prompts for seed in seeds]
    missing = [key for key in keys if key not in by_key]
    if missing or len(rows) != len(keys):
        what = f"none for prompt {missing[0][0]} and seed {missing[0][1]}" if missing else "some twice"
        raise EvaluationError(
            f"{where} needs one sample of the {model} for every prompt and seed ({len(keys)}), it has {len(rows)}, "
            f"{what}: evaluate the policy again"
        )
    for row in rows:
        at = f"{where}: the {model}'s sample of prompt {row.prompt_id} and seed {row.seed}"
        if row.prompt_set != summary["prompt_set"]:
            raise EvaluationError(f"{at} is of another set of prompts than evaluation.json: evaluate the policy again")
        if not math.isfinite(row.scores.get(scorer, math.nan)):
            raise EvaluationError(f"{at} has no finite score {scorer!r}: evaluate the policy again")
    return [by_key[key] for key in keys]


def _of_pairs(pairs: list[PairScores], where: Path) -> dict[str, Any]:
    for pair in pairs:
        logps = (pair.chosen_logp, pair.rejected_logp, pair.chosen_ref_logp, pair.rejected_ref_logp)
        if not all(math.isfinite(number) for number in (*logps, pair.chosen_risk.get(DRIFT, math.nan))):
            raise EvaluationError(
                f"{where}: held-out pair {pair.row_id} has a log-probability or a sequential KL ({DRIFT!r}) that is "
                "missing or not finite: evaluate the policy again"
            )
    bits = np.array([[p.chosen_logp + p.rejected_logp, p.chosen_ref_logp + p.rejected_ref_logp] for p in pairs])
    bits = -bits / math.log(2)
    if bits[:, 1].sum() <= 0:
        raise EvaluationError(
            f"{where}: the reference gives every held-out response the probability one, so that bits per byte cannot "
            "be compared: check that its pairs have responses"
        )
    return {
        "pairs": tuple(pair.row_id for pair in pairs),
        "groups": np.unique([pair.group for pair in pairs], return_inverse=True)[1],
        # Rounding can leave a KL of nearly zero just below it.
        "drift": np.array([max(pair.chosen_risk[DRIFT], 0.0) for pair in pairs]),
        "bits": bits[:, 0],
        "reference_bits": bits[:, 1],
    }
