"""evaluation.json: every figure of a run's evaluation and the verdict that follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.config import SEQUENTIAL_METHODS, EvaluationConfig
from pipeline.errors import EvaluationError
from pipeline.evaluation.pairs import summarise_pairs
from pipeline.evaluation.scorers import Scorer, check_scorers, length, repetition
from pipeline.evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    FloatArray,
    compare_scores,
    loss_avoided_per_1000,
)
from pipeline.evaluation.verdict import Degeneration, decide
from pipeline.records import PairScores, ScoredSample

NUM_WORST = 10
"""How many of the policy's worst outputs are listed."""

Key = tuple[str, int]
Comparison = dict[str, dict[str, Estimate]]


def summarise(
    samples: list[ScoredSample], pairs: list[PairScores], config: EvaluationConfig, training: dict[str, Any]
) -> dict[str, Any]:
    """The content of evaluation.json from both models' samples and the scores of held-out pairs.

    ``training`` needs ``method`` and, for a sequential method, ``risk_label``: the key of the trained measure
    in ``PairScores.chosen_risk``; it is passed on as it is. The order of samples and pairs does not matter.
    Scores of which smaller is better are mirrored, so that ``tail_quantile``, ``tail_mean`` and ``worst`` are
    always of the bad end (of a neutral score: the low end). Raises `EvaluationError` when the two models'
    samples do not belong together, a score is missing or not finite, or `summarise_pairs` refuses the pairs.
    """
    method, risk_label = _trained(training)
    scorers = check_scorers(config)
    reference, policy = _by_key(samples, "reference"), _by_key(samples, "policy")
    prompts, seeds = _check_grid(reference, policy)
    keys = [(prompt, seed) for prompt in prompts for seed in seeds]
    shape = len(prompts), len(seeds)

    compared = {
        name: compare_scorer(
            _matrix(reference, keys, shape, name),
            _matrix(policy, keys, shape, name),
            scorer,
            config,
            config.incident_below if name == config.primary_scorer else None,
        )
        for name, scorer in scorers.items()
    }
    primary = compared[config.primary_scorer]
    text, text_estimates = _text(reference, policy, keys, shape, config)
    of_pairs = summarise_pairs(pairs, method, risk_label, resamples=config.bootstrap_resamples)
    bits = of_pairs["bits_per_byte_relative_change"]
    verdict = decide(
        primary["difference"],
        policy_incidents=primary["policy"]["incident_share"],
        degeneration=Degeneration(
            repetition=text_estimates["repetition"]["difference"]["mean"],
            length_reference=text_estimates["characters"]["reference"]["mean"].value,
            length_policy=text_estimates["characters"]["policy"]["mean"].value,
            bits_change=bits["value"] if bits else None,
        ),
        scorer=config.primary_scorer,
        tail_fraction=config.tail_fraction,
        incident_below=config.incident_below,
        num_prompts=len(prompts),
    )
    cost = config.cost_per_incident
    loss = None if cost is None else loss_avoided_per_1000(primary["difference"]["incident_share"], cost)
    return {
        "verdict": verdict,
        "primary_scorer": config.primary_scorer,
        "tail_fraction": config.tail_fraction,
        "incident_below": config.incident_below,
        "cost_per_incident": cost,
        "loss_avoided_per_1000": loss.as_dict() if loss else None,
        "confidence": CONFIDENCE,
        "bootstrap_resamples": config.bootstrap_resamples,
        "split": config.split,
        "num_prompts": len(prompts),
        "seeds": list(seeds),
        "num_samples_per_model": len(keys),
        "prompt_set": next(iter(reference.values())).prompt_set,
        "scorers": {
            name: {
                "larger_is_better": scorers[name].larger_is_better,
                "description": scorers[name].description,
                **_as_dicts(comparison),
            }
            for name, comparison in compared.items()
        },
        "text": text,
        "pairs": of_pairs,
        "worst": _worst(reference, policy, keys, config.primary_scorer),
        "training": training,
    }


def _trained(training: dict[str, Any]) -> tuple[str, str]:
    method = training.get("method")
    risk_label = training.get("risk_label")
    if method is None or (method in SEQUENTIAL_METHODS and risk_label is None):
        raise EvaluationError(
            "the training summary lacks 'method' or, for a sequential method, 'risk_label' "
            f"(it has: {', '.join(sorted(training)) or 'nothing'}): without them the trained measure is unknown"
        )
    return str(method), str(risk_label or "kl")


def _by_key(samples: list[ScoredSample], model: str) -> dict[Key, ScoredSample]:
    chosen: dict[Key, ScoredSample] = {}
    for sample in samples:
        if sample.model != model:
            continue
        key = (sample.prompt_id, sample.seed)
        if key in chosen:
            raise EvaluationError(f"{model} sample of prompt {key[0]} and seed {key[1]} appears twice: sample again")
        chosen[key] = sample
    if not chosen:
        raise EvaluationError(f"there is no sample of the {model}: sample both models before summarising")
    return chosen


def _check_grid(reference: dict[Key, ScoredSample], policy: dict[Key, ScoredSample]) -> tuple[list[str], list[int]]:
    """Prompts and seeds of a complete grid that both models share, or an error that names what is missing."""
    sets = {sample.prompt_set for sample in (*reference.values(), *policy.values())}
    if len(sets) > 1:
        raise EvaluationError(
            f"the samples come from {len(sets)} different prompt sets, so the models cannot be compared: "
            "sample both models from the same prompts"
        )
    prompts = sorted({prompt for prompt, _ in (*reference, *policy)})
    seeds = sorted({seed for _, seed in (*reference, *policy)})
    grid = {(prompt, seed) for prompt in prompts for seed in seeds}
    for model, found in (("reference", reference), ("policy", policy)):
        missing = sorted(grid - set(found))
        if missing:
            raise EvaluationError(
                f"{len(missing)} samples of the {model} are missing, the first for prompt {missing[0][0]} and seed "
                f"{missing[0][1]}: both models need one sample a prompt and seed"
            )
    return prompts, seeds


def _matrix(samples: dict[Key, ScoredSample], keys: list[Key], shape: tuple[int, int], scorer: str) -> FloatArray:
    for key in keys:
        if not np.isfinite(samples[key].scores.get(scorer, np.nan)):
            raise EvaluationError(
                f"{samples[key].model} sample of prompt {key[0]} and seed {key[1]} has no finite score {scorer!r}: "
                "score all samples with evaluation.scorers"
            )
    return np.array([samples[key].scores[scorer] for key in keys], dtype=np.float64).reshape(shape)


def compare_scorer(
    reference: FloatArray,
    policy: FloatArray,
    scorer: Scorer,
    config: EvaluationConfig,
    incident_below: float | None,
) -> Comparison:
    """`compare_scores` of two score matrices [prompts, seeds], mirrored for a scorer of which smaller is better, so
    that tails are of the bad end."""
    mirror = -1.0 if scorer.larger_is_better is False else 1.0
    comparison = compare_scores(
        mirror * reference,
        mirror * policy,
        tail_fraction=config.tail_fraction,
        incident_below=incident_below,
        resamples=config.bootstrap_resamples,
    )
    if mirror > 0:
        return comparison
    return {side: {name: one.scaled(mirror) for name, one in row.items()} for side, row in comparison.items()}


def _text(
    reference: dict[Key, ScoredSample],
    policy: dict[Key, ScoredSample],
    keys: list[Key],
    shape: tuple[int, int],
    config: EvaluationConfig,
) -> tuple[dict[str, Any], dict[str, Comparison]]:
    """Length, repetition and finished share of the texts themselves, whatever scorers the run uses."""

    def numbers(samples: dict[Key, ScoredSample]) -> dict[str, FloatArray]:
        texts = [samples[key].text for key in keys]
        return {
            "characters": np.array(length([], texts)).reshape(shape),
            "repetition": np.array(repetition([], texts)).reshape(shape),
            "empty": np.array([float(not text.strip()) for text in texts]).reshape(shape),
            "finished": np.array([float(samples[key].finished) for key in keys]).reshape(shape),
        }

    of_reference, of_policy = numbers(reference), numbers(policy)
    estimates = {
        name: compare_scores(
            of_reference[name],
            of_policy[name],
            tail_fraction=config.tail_fraction,
            incident_below=None,
            resamples=config.bootstrap_resamples,
        )
        for name in of_reference
    }
    means = {name: {side: row["mean"].as_dict() for side, row in one.items()} for name, one in estimates.items()}
    return means, estimates


def _worst(
    reference: dict[Key, ScoredSample], policy: dict[Key, ScoredSample], keys: list[Key], scorer: str
) -> list[dict[str, Any]]:
    """The policy's worst outputs, worst first, each with the reference's for the same prompt and seed."""
    worst = sorted(keys, key=lambda key: (policy[key].scores[scorer], key))[:NUM_WORST]
    return [
        {
            "prompt_id": key[0],
            "seed": key[1],
            "prompt": policy[key].prompt,
            "policy_text": policy[key].text,
            "policy_score": policy[key].scores[scorer],
            "reference_text": reference[key].text,
            "reference_score": reference[key].scores[scorer],
        }
        for key in worst
    ]


def _as_dicts(comparison: Comparison) -> dict[str, dict[str, dict[str, float | None]]]:
    return {side: {name: one.as_dict() for name, one in row.items()} for side, row in comparison.items()}
