"""What is measured, fixed before the runs, and how each figure follows from weights of the films.

A film is a group of the data: its prompt with all samples and its pairs with both responses are drawn together. A
figure of a run is a ratio of sums over films (a mean, a share, bits per byte) or the tail mean of its samples, so a
resample needs no more than how often each film was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.statistics import FloatArray, IndexArray
from pipeline.study.runs import StudyRun


@dataclass(frozen=True)
class Measure:
    """One figure of a run."""

    name: str
    title: str
    unit: str
    larger_is_better: bool
    form: str
    """How it is printed."""


MEASURES = (
    Measure("reward_accuracy", "reward accuracy", "share of pairs", True, ".3f"),
    Measure("mean", "mean VADER", "score, -1 to 1", True, ".3f"),
    Measure("tail", "CVaR of VADER", "score, -1 to 1", True, ".3f"),
    Measure("incidents", "incidents", "share of outputs", False, ".2%"),
    Measure("repetition", "repetition", "share of 4-grams", False, ".2%"),
    Measure("bits_per_byte", "bits per byte", "bits", False, ".3f"),
    Measure("drift", "KL on chosen", "nats", False, ".2f"),
    Measure("rejected_drift", "KL on rejected", "nats", False, ".2f"),
    Measure("chosen_change", "log-probability of chosen", "nats, change", True, ".2f"),
)
BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}
OF_REFERENCE = ("mean", "tail", "incidents", "repetition", "bits_per_byte")
"""Those that the reference has too."""


@dataclass(frozen=True, eq=False)
class Sums:
    """A model's outputs and pairs, as far as figures need them, over U films."""

    top: Mapping[str, FloatArray]
    """``[U]`` by name, for every figure but the tail."""
    bottom: Mapping[str, FloatArray]
    ordered: FloatArray
    """``[P K]``, the scores of all samples, ascending."""
    film_of: IndexArray
    """``[P K]``, the film of each."""
    tail_fraction: float


def films_of(run: StudyRun) -> tuple[str, ...]:
    """Every film with a prompt or a pair, in order."""
    return tuple(sorted({*run.prompt_groups, *run.pairs.groups}))


def policy_sums(run: StudyRun, films: Sequence[str]) -> Sums:
    """Of the run's policy."""
    pairs = run.pairs
    one = np.ones(len(pairs.row_ids))
    of_pairs = {
        "reward_accuracy": (pairs.reward_correct, one),
        "bits_per_byte": (pairs.bits, pairs.bytes),
        "drift": (pairs.chosen_kl, one),
        "rejected_drift": (pairs.rejected_kl, one),
        "chosen_change": (pairs.chosen_change, one),
    }
    return _sums(run, films, run.scores, run.repetition, of_pairs)


def reference_sums(run: StudyRun, films: Sequence[str]) -> Sums:
    """Of the reference that the run was judged against."""
    of_pairs = {"bits_per_byte": (run.pairs.reference_bits, run.pairs.bytes)}
    return _sums(run, films, run.reference_scores, run.reference_repetition, of_pairs)


def figures(sums: Sums, weights: FloatArray) -> dict[str, FloatArray]:
    """Every figure, each ``[D]``, for D rows of how often each film counts, ``weights [D, U]``.

    A row in which a figure has nothing to stand on (only films without pairs, say) takes the value of all films.
    """
    found = {}
    for name, top in sums.top.items():
        bottom = sums.bottom[name]
        above, below = weights @ top, weights @ bottom
        found[name] = np.where(below > 0, above / np.where(below > 0, below, 1.0), top.sum() / bottom.sum())
    of_samples = weights[:, sums.film_of]
    nothing = of_samples.sum(axis=1) == 0
    found["tail"] = weighted_tail_mean(sums.ordered, np.where(nothing[:, None], 1.0, of_samples), sums.tail_fraction)
    return found


def weighted_tail_mean(ordered: FloatArray, weights: FloatArray, fraction: float) -> FloatArray:
    """Mean of the lowest ``fraction`` of the weight, the value at the boundary split: ``[D]``.

    ``ordered [n]`` ascends, ``weights [D, n]`` say how often each counts; with whole weights this is
    `pipeline.evaluation.statistics.lower_tail_mean` of the values repeated so often.
    """
    mass = weights.sum(axis=1, keepdims=True) * fraction
    before = np.cumsum(weights, axis=1) - weights
    counted = np.clip(mass - before, 0.0, weights)
    return np.asarray((counted @ ordered) / mass[:, 0])


def _sums(
    run: StudyRun,
    films: Sequence[str],
    scores: FloatArray,
    repetition: FloatArray,
    of_pairs: Mapping[str, tuple[FloatArray, FloatArray]],
) -> Sums:
    number = {film: index for index, film in enumerate(films)}
    of_prompt = np.array([number[group] for group in run.prompt_groups], dtype=np.int64)
    of_pair = np.array([number[group] for group in run.pairs.groups], dtype=np.int64)

    def by_film(film: IndexArray, values: FloatArray) -> FloatArray:
        return np.bincount(film, weights=values, minlength=len(films)).astype(np.float64)

    samples = np.full(len(of_prompt), float(scores.shape[1]))
    of_prompts = {
        "mean": scores.sum(axis=1),
        "incidents": (scores < run.incident_below).sum(axis=1).astype(np.float64),
        "repetition": repetition.sum(axis=1),
    }
    top = {name: by_film(of_prompt, values) for name, values in of_prompts.items()}
    bottom = {name: by_film(of_prompt, samples) for name in of_prompts}
    for name, (above, below) in of_pairs.items():
        top[name], bottom[name] = by_film(of_pair, above), by_film(of_pair, below)
    order = np.argsort(scores, axis=None, kind="stable")
    return Sums(top, bottom, scores.ravel()[order], np.repeat(of_prompt, scores.shape[1])[order], run.tail_fraction)
