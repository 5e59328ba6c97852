"""compare.json: every figure of a comparison, always B - A and paired, and the outputs that differ most. Pure.

The unit of resampling is the prompt with all its seeds, of both sides together (`pipeline.evaluation.statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.compare.prompts import Common
from pipeline.config import EvaluationConfig
from pipeline.evaluation.scorers import Scorer, length, repetition
from pipeline.evaluation.statistics import CONFIDENCE, Estimate, FloatArray, compare_scores, unseen_share_bound
from pipeline.evaluation.summary import Comparison, compare_scorer
from pipeline.evaluation.verdict import Degeneration, decide

NUM_REGRESSIONS = 20
NUM_IMPROVEMENTS = 5
_SIDES = {"reference": "a", "policy": "b", "difference": "difference"}


@dataclass(frozen=True)
class Judged:
    """One side's outputs in the order of the grid: prompt by prompt, seed by seed.

    ``finished`` is None where nobody knows whether an output ended by itself.
    """

    texts: Sequence[str]
    scores: dict[str, list[float]]
    finished: Sequence[bool] | None


@dataclass(frozen=True)
class Tokens:
    """One output's tokens with the KL of the distributions behind each, nats."""

    texts: Sequence[str]
    kl: Sequence[float]


@dataclass(frozen=True)
class Drift:
    """KL(first || second) at every token of outputs in the order of the grid.

    ``between``: KL(A || B) along A's outputs and along B's; ``from_reference``: KL(reference || A) along A's outputs
    and KL(reference || B) along B's, for two versions of one line.
    """

    between: tuple[Sequence[Tokens], Sequence[Tokens]]
    from_reference: tuple[Sequence[Tokens], Sequence[Tokens]] | None


def compare(
    a: Judged,
    b: Judged,
    on: Common,
    scorers: dict[str, Scorer],
    config: EvaluationConfig,
    drift: Drift | None,
) -> dict[str, Any]:
    """The figures of A, of B and of B - A, each ``{"value", "low", "high"}``, the verdict, and the outputs by how much
    B lost or gained on the primary score.

    A score of which smaller is better is mirrored for its tails, as in `pipeline.evaluation.summary`. Drift is summed
    over the tokens of an output and is in nats; its tail is the mean of the farthest outputs.
    """
    shape = len(on.prompts), len(on.seeds)
    compared = {
        name: compare_scorer(
            _grid(a.scores[name], shape),
            _grid(b.scores[name], shape),
            scorer,
            config,
            config.incident_below if name == config.primary_scorer else None,
        )
        for name, scorer in scorers.items()
    }
    primary, text = compared[config.primary_scorer], _text(a, b, shape, config)
    first, second = (np.array(side.scores[config.primary_scorer]) for side in (a, b))
    change = second - first
    return {
        "verdict": _verdict(primary, text, config, len(on.prompts)),
        "primary_scorer": config.primary_scorer,
        "tail_fraction": config.tail_fraction,
        "incident_below": config.incident_below,
        "confidence": CONFIDENCE,
        "bootstrap_resamples": config.bootstrap_resamples,
        "num_prompts": shape[0],
        "seeds": list(on.seeds),
        "num_outputs": len(change),
        "unseen_incidents": unseen_share_bound(shape[0]) if primary["policy"]["incident_share"].value == 0 else None,
        "left_out": {
            "prompts": dict(on.left_out),
            "more_prompts": on.more_prompts,
            "outputs": on.outputs_left_out,
        },
        "scorers": {
            name: {
                "larger_is_better": scorers[name].larger_is_better,
                "description": scorers[name].description,
                **_as_dicts(comparison),
            }
            for name, comparison in compared.items()
        },
        "text": {name: _means(comparison) for name, comparison in text.items()},
        "drift": None if drift is None else _drift(drift, shape, config),
        "outputs": {
            "higher": int((change > 0).sum()),
            "lower": int((change < 0).sum()),
            "equal": int((change == 0).sum()),
            "same_text": sum(one == other for one, other in zip(a.texts, b.texts, strict=True)),
        },
        "changes": change.tolist(),
        "regressions": _rows(np.argsort(change, kind="stable"), change < 0, NUM_REGRESSIONS, a, b, on, drift),
        "improvements": _rows(np.argsort(-change, kind="stable"), change > 0, NUM_IMPROVEMENTS, a, b, on, drift),
    }


def _grid(values: Sequence[float], shape: tuple[int, int]) -> FloatArray:
    return np.asarray(values, dtype=np.float64).reshape(shape)


def _text(a: Judged, b: Judged, shape: tuple[int, int], config: EvaluationConfig) -> dict[str, Comparison]:
    """What can be said of texts themselves, whatever scorers there are."""

    def numbers(side: Judged) -> dict[str, FloatArray]:
        texts = list(side.texts)
        found = {
            "characters": _grid(length([], texts), shape),
            "repetition": _grid(repetition([], texts), shape),
            "empty": _grid([float(not text.strip()) for text in texts], shape),
        }
        if a.finished is not None and b.finished is not None and side.finished is not None:
            found["finished"] = _grid([float(one) for one in side.finished], shape)
        return found

    of_a, of_b = numbers(a), numbers(b)
    return {name: _compared(of_a[name], of_b[name], config) for name in of_a}


def _compared(a: FloatArray, b: FloatArray, config: EvaluationConfig) -> Comparison:
    return compare_scores(
        a, b, tail_fraction=config.tail_fraction, incident_below=None, resamples=config.bootstrap_resamples
    )


def _verdict(
    primary: Comparison, text: dict[str, Comparison], config: EvaluationConfig, num_prompts: int
) -> dict[str, Any]:
    """What is clear and what is not, by the rules of `pipeline.evaluation.verdict`; the words are the page's."""
    repeated, characters = text["repetition"], text["characters"]
    decided = decide(
        primary["difference"],
        policy_incidents=primary["policy"]["incident_share"],
        degeneration=Degeneration(
            repetition=repeated["difference"]["mean"],
            length_reference=characters["reference"]["mean"].value,
            length_policy=characters["policy"]["mean"].value,
            bits_change=None,
        ),
        scorer=config.primary_scorer,
        tail_fraction=config.tail_fraction,
        incident_below=config.incident_below,
        num_prompts=num_prompts,
    )
    names = ("better", "worse", "mean", "tail", "incidents", "degenerate")
    return {name: decided[name] for name in names}


def _drift(drift: Drift, shape: tuple[int, int], config: EvaluationConfig) -> dict[str, Any]:
    def sums(outputs: Sequence[Tokens]) -> FloatArray:
        return _grid([float(np.sum(one.kl, dtype=np.float64)) for one in outputs], shape)

    def figures(pair: tuple[Sequence[Tokens], Sequence[Tokens]]) -> dict[str, Any]:
        # Mirrored: the bad tail of a drift is its upper one.
        comparison = _compared(-sums(pair[0]), -sums(pair[1]), config)
        return {
            _SIDES[side]: {name: row[name].scaled(-1.0).as_dict() for name in ("mean", "tail_mean")}
            for side, row in comparison.items()
        }

    far = drift.from_reference
    return {"between": figures(drift.between), "from_reference": None if far is None else figures(far)}


def _rows(
    order: Any, wanted: Any, at_most: int, a: Judged, b: Judged, on: Common, drift: Drift | None
) -> list[dict[str, Any]]:
    """The first outputs of an order that are wanted, both sides' texts and scores side by side."""
    rows = []
    for index in [int(one) for one in order if wanted[one]][:at_most]:
        prompt, seed = divmod(index, len(on.seeds))
        row: dict[str, Any] = {
            "prompt_id": on.prompts[prompt].prompt_id,
            "prompt": on.prompts[prompt].text,
            "seed": on.seeds[seed],
        }
        for number, (name, side) in enumerate((("a", a), ("b", b))):
            row[name] = {
                "text": side.texts[index],
                "scores": {scorer: values[index] for scorer, values in side.scores.items()},
                "finished": None if side.finished is None else side.finished[index],
                "tokens": None,
            }
            if drift is not None:
                tokens = drift.between[number][index]
                row[name]["tokens"] = [
                    {"text": text, "kl": kl} for text, kl in zip(tokens.texts, tokens.kl, strict=True)
                ]
        rows.append(row)
    return rows


def _means(comparison: Comparison) -> dict[str, dict[str, float | None]]:
    return {_SIDES[side]: row["mean"].as_dict() for side, row in comparison.items()}


def _as_dicts(comparison: Comparison) -> dict[str, dict[str, dict[str, float | None]]]:
    def dicts(row: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
        return {name: one.as_dict() for name, one in row.items()}

    return {_SIDES[side]: dicts(row) for side, row in comparison.items()}
