"""A finished run as arrays: what it scored for every prompt, and what it says of every held-out pair."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.data.tables import read_table
from pipeline.errors import ArtifactError, EvaluationError
from pipeline.evaluation.statistics import FloatArray
from pipeline.nested import flat
from pipeline.records import PairScores, PromptTokens, ScoredSample

SCORER, REPETITION = "vader", "repetition"
SEED = "train.seed"


@dataclass(frozen=True, eq=False)
class PairArrays:
    """The N held-out pairs in the order of their groups and row ids; every array is ``[N]``."""

    row_ids: tuple[str, ...]
    groups: tuple[str, ...]
    reward_correct: FloatArray
    """1 where log pi/pi_ref is larger on chosen than on rejected, else 0."""
    chosen_kl: FloatArray
    """Sequential KL, nats."""
    rejected_kl: FloatArray
    chosen_change: FloatArray
    """log pi - log pi_ref of the chosen response, nats."""
    bits: FloatArray
    """That the policy needs for both responses."""
    reference_bits: FloatArray
    bytes: FloatArray
    """Of both responses."""


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One finished run: P prompts in the order of their ids, K samples of each; every matrix is ``[P, K]``."""

    path: Path
    """Its summary.json."""
    options: Mapping[str, Any]
    """By dotted name."""
    seed: int
    """Of training."""
    reference: str
    """Key of the reference's samples: it hangs on model, data and sampling."""
    prompt_set: str
    prompts: tuple[str, ...]
    prompt_groups: tuple[str, ...]
    """The group (film) of each prompt, as the pairs name it."""
    scores: FloatArray
    """VADER of the policy's samples."""
    repetition: FloatArray
    reference_scores: FloatArray
    reference_repetition: FloatArray
    pairs: PairArrays
    align_seconds: float | None
    """How long alignment took; None where the summary does not say."""

    @property
    def tail_fraction(self) -> float:
        return float(self.options["evaluation.tail_fraction"])

    @property
    def incident_below(self) -> float:
        return float(self.options["evaluation.incident_below"])

    @property
    def name(self) -> str:
        """The directory of its report."""
        return self.path.absolute().parent.name


def read_run(path: Path) -> StudyRun:
    """A run from ``<storage>/reports/<name>/summary.json`` and the artefacts in the same storage that it names.

    Raises:
        EvaluationError: when a file is missing, damaged or of another version, when the run was not scored by VADER
            first and by repetition, when its samples are no complete grid, or when a number is not finite.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        options = flat(summary["config"])
        primary, split = options["evaluation.primary_scorer"], options["evaluation.split"]
        if primary != SCORER:
            raise EvaluationError(f"{path}: its primary scorer is {primary}, the study is about {SCORER}: leave it out")
        reports = path.absolute().parent.parent
        if reports.name != "reports":
            raise EvaluationError(f"{path} does not lie in <storage>/reports/<name>/, so its artefacts are not found")
        artifacts = {
            stage: reports.parent / "artifacts" / stage / summary["artifacts"][stage]
            for stage in ("tokens", "evaluate")
        }
        samples = read_table(artifacts["evaluate"] / "samples.parquet", ScoredSample)
        group_of = {
            one.prompt_id: one.group
            for one in read_table(artifacts["tokens"] / f"prompts-{split}.parquet", PromptTokens)
        }
        prompts = tuple(sorted({sample.prompt_id for sample in samples}))
        matrices = {
            (model, scorer): _matrix(path, samples, prompts, model, scorer)
            for model in ("policy", "reference")
            for scorer in (SCORER, REPETITION)
        }
        seconds = (summary.get("timing") or {}).get("stages", {}).get("align")
        return StudyRun(
            path=path,
            options=options,
            seed=int(options[SEED]),
            reference=summary["artifacts"]["sample_reference"],
            prompt_set=summary["evaluation"]["prompt_set"],
            prompts=prompts,
            prompt_groups=tuple(group_of[prompt] for prompt in prompts),
            scores=matrices["policy", SCORER],
            repetition=matrices["policy", REPETITION],
            reference_scores=matrices["reference", SCORER],
            reference_repetition=matrices["reference", REPETITION],
            pairs=_pairs(path, read_table(artifacts["evaluate"] / "pairs.parquet", PairScores)),
            align_seconds=None if seconds is None else float(seconds),
        )
    except EvaluationError:
        raise
    except ArtifactError as error:
        raise EvaluationError(f"{path}: {error}") from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}; give the summary.json of a run") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(
            f"{path} is no run of this version ({type(error).__name__}: {error}): run it again"
        ) from error


def _matrix(
    path: Path,
    samples: list[ScoredSample],
    prompts: tuple[str, ...],
    model: Literal["policy", "reference"],
    scorer: str,
) -> FloatArray:
    """A score of one model's samples, ``[P, K]``, from the lowest sampling seed to the highest."""
    values = {(one.prompt_id, one.seed): one.scores[scorer] for one in samples if one.model == model}
    seeds = sorted({seed for _, seed in values})
    if not values or len(values) != len(prompts) * len(seeds):
        raise EvaluationError(
            f"{path}: {len(values)} samples of the {model} are no complete grid of {len(prompts)} prompts and "
            f"{len(seeds)} seeds: run it again"
        )
    matrix = np.array([[values[prompt, seed] for seed in seeds] for prompt in prompts], dtype=np.float64)
    return _finite(path, f"{scorer} of the {model}", matrix)


def _pairs(path: Path, pairs: list[PairScores]) -> PairArrays:
    if not pairs:
        raise EvaluationError(f"{path}: there are no held-out pairs, so its drift is unknown: give more data")
    ordered = sorted(pairs, key=lambda pair: (pair.group, pair.row_id))

    def column(name: str) -> FloatArray:
        return _finite(path, name, np.array([getattr(pair, name) for pair in ordered], dtype=np.float64))

    chosen, chosen_ref, rejected, rejected_ref = map(
        column, ("chosen_logp", "chosen_ref_logp", "rejected_logp", "rejected_ref_logp")
    )
    return PairArrays(
        row_ids=tuple(pair.row_id for pair in ordered),
        groups=tuple(pair.group for pair in ordered),
        reward_correct=(chosen - chosen_ref > rejected - rejected_ref).astype(np.float64),
        chosen_kl=_finite(path, "chosen KL", np.array([pair.chosen_risk["kl"] for pair in ordered])),
        rejected_kl=_finite(path, "rejected KL", np.array([pair.rejected_risk["kl"] for pair in ordered])),
        chosen_change=chosen - chosen_ref,
        bits=-(chosen + rejected) / math.log(2),
        reference_bits=-(chosen_ref + rejected_ref) / math.log(2),
        bytes=column("chosen_bytes") + column("rejected_bytes"),
    )


def _finite(path: Path, name: str, values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise EvaluationError(f"{path}: {name} is not finite somewhere, so no figure is defined: leave the run out")
    return values
