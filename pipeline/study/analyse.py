"""The whole analysis: every setting, beside dpo at its rate and beside dpo's front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluation.statistics import FloatArray
from pipeline.study.compare import Axis, Front, front_of, holm, match, p_value
from pipeline.study.intervals import DRAW_SEED, RESAMPLES, Draws, deviation, make_draws
from pipeline.study.measures import MEASURES, OF_REFERENCE, figures, films_of, policy_sums, reference_sums
from pipeline.study.results import Cell, Difference, Matched, Record, Row, Study
from pipeline.study.runs import StudyRun
from pipeline.study.settings import BASELINE, Setting, baseline, settings_of

COMPARED: Mapping[Axis, tuple[str, ...]] = {
    "drift": ("mean", "tail", "incidents", "reward_accuracy", "repetition", "bits_per_byte"),
    "mean": ("tail", "incidents", "drift", "bits_per_byte", "repetition", "reward_accuracy"),
}
"""What is compared where a setting and dpo's front have the same drift, or the same mean VADER."""
TESTED = ("tail", "incidents")
"""The family of tests, fixed before the runs: these, of every setting but dpo that has a match; at matched drift (the
primary family) and, apart from it, at matched mean."""


def analyse(runs: Sequence[StudyRun], *, resamples: int = RESAMPLES, seed: int = DRAW_SEED) -> Study:
    """Everything that the runs say; equal input gives equal figures.

    The front is made of all settings of dpo, whatever their rate and beta.

    Raises:
        EvaluationError: as `settings_of`.
    """
    grouped = settings_of(runs)
    films = films_of(runs[0])
    seeds = tuple(run.seed for run in next(iter(grouped.values())))
    draws = make_draws(len(seeds), len(films), resamples=resamples, seed=seed)
    of_run = {run.path: figures(policy_sums(run, films), draws.films) for run in runs}
    of_setting = {
        setting: {
            measure.name: draws.over_seeds(np.stack([of_run[run.path][measure.name] for run in its_runs], axis=1))
            for measure in MEASURES
        }
        for setting, its_runs in grouped.items()
    }
    on_front = tuple(one for one in grouped if one.method == BASELINE)
    front = front_of([of_setting[one] for one in on_front])
    others = {setting: values for setting, values in of_setting.items() if setting not in on_front}
    of_reference = figures(reference_sums(runs[0], films), draws.films)
    return Study(
        _basis(runs[0], films, seeds, resamples),
        {name: draws.estimate(of_reference[name]) for name in OF_REFERENCE},
        tuple(_row(setting, grouped[setting], of_setting, draws) for setting in grouped),
        on_front,
        {
            axis: tuple(_corrected([_matched(one, others[one], front, axis, draws) for one in others]))
            for axis in COMPARED
        },
        {axis: _bends({one: of_setting[one] for one in on_front}, axis, draws) for axis in COMPARED},
        tuple(
            Record(
                run.name,
                setting,
                run.seed,
                run.align_seconds,
                {one.name: float(of_run[run.path][one.name][0]) for one in MEASURES},
            )
            for setting, its_runs in grouped.items()
            for run in its_runs
        ),
    )


def _basis(run: StudyRun, films: Sequence[str], seeds: tuple[int, ...], resamples: int) -> dict[str, Any]:
    return {
        "reference": run.reference,
        "prompt_set": run.prompt_set,
        "split": run.options["evaluation.split"],
        "num_films": len(films),
        "num_prompts": len(run.prompts),
        "samples_per_prompt": run.scores.shape[1],
        "num_pairs": len(run.pairs.row_ids),
        "seeds": list(seeds),
        "tail_fraction": run.tail_fraction,
        "incident_below": run.incident_below,
        "resamples": resamples,
    }


def _row(
    setting: Setting, runs: Sequence[StudyRun], of_setting: Mapping[Setting, Mapping[str, FloatArray]], draws: Draws
) -> Row:
    ours, base = of_setting[setting], baseline(setting.lr)
    seconds = [run.align_seconds for run in runs if run.align_seconds is not None]
    cells = {
        name: Cell(
            draws.estimate(values),
            deviation(draws.by_seed(values)),
            None if setting == base else draws.estimate(values - of_setting[base][name]),
        )
        for name, values in ours.items()
    }
    mean = math.fsum(seconds) / len(seconds) if seconds else None
    return Row(setting, tuple(run.seed for run in runs), mean, cells)


def _matched(setting: Setting, values: Mapping[str, FloatArray], front: Front, axis: Axis, draws: Draws) -> Matched:
    met = match(values, front, axis, COMPARED[axis], draws)
    differences = {
        name: Difference(draws.estimate(one), draws.by_seed(one), p_value(draws.resampled(one)))
        for name, one in met.differences.items()
    }
    return Matched(setting, draws.estimate(values[axis]), met.reason, met.outside, differences)


def _bends(points: Mapping[Setting, Mapping[str, FloatArray]], axis: Axis, draws: Draws) -> tuple[Matched, ...]:
    found = [
        _matched(setting, values, front_of([points[one] for one in points if one != setting]), axis, draws)
        for setting, values in points.items()
        if len(points) > 1
    ]
    return tuple(one for one in found if one.reason is None)


def _corrected(matched: Sequence[Matched]) -> list[Matched]:
    """With the p-values of the family corrected."""
    family = [
        (index, name)
        for index, one in enumerate(matched)
        if one.setting.method != BASELINE
        for name in TESTED
        if name in one.differences
    ]
    values = holm([matched[index].differences[name].p for index, name in family])
    found = list(matched)
    for (index, name), value in zip(family, values, strict=True):
        differences = dict(found[index].differences)
        differences[name] = replace(differences[name], corrected=value)
        found[index] = replace(found[index], differences=differences)
    return found
