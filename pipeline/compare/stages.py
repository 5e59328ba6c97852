"""What a comparison computes with models: content-addressed stages on Ray actors, so that the same again is instant.

::

    sample (A) ──┬──► drift (A, B)           sample (A) ──► drift (reference, A)
    sample (B) ──┘                           sample (B) ──► drift (reference, B)

A sample's key holds the model's contents, prompts, seeds and options, whatever side it is and wherever it lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pipeline.actors import Call
from pipeline.artifacts import Artifact
from pipeline.compare.encode import Encoded
from pipeline.compare.prompts import Common
from pipeline.compare.sides import Model
from pipeline.config import RunConfig
from pipeline.data.tables import read_table, write_table
from pipeline.evaluation.stage import actor_device, actor_results, sample_prompts
from pipeline.graph import Observer, PlannedStage, Stage, StageContext, plan
from pipeline.keys import LIBRARIES, library_versions, pick
from pipeline.models.batches import token_batches
from pipeline.models.source import model_files
from pipeline.plugins import function_digests
from pipeline.records import SampleRow, ScoredSample
from pipeline.stages import copy_base
from pipeline.storage import local_copy

SAMPLE, DRIFT, MODEL = "compare_sample", "compare_drift", "compare_model"
_OPTIONS = ("temperature", "max_new_tokens", "batch_size", "scorers")


class DriftActor:
    """Hosts two models and says how far they are apart at every token."""

    def __init__(self, run: dict[str, Any], base_dir: str, model_dir: str) -> None:
        from pipeline.evaluation.annotate import BothModels
        from pipeline.models.load import load_model, load_tokenizer, torch_dtype
        from pipeline.risk.measures import Measure

        config = RunConfig.model_validate(run)
        device, dtype = actor_device(config.cluster), torch_dtype(config.model.dtype)
        self._kl = Measure("mean")
        base, model = local_copy(base_dir), local_copy(model_dir)
        self._both = BothModels(
            load_model(base, dtype).to(device),
            load_model(model, dtype).to(device),
            load_tokenizer(base),
            (self._kl,),
            config.train.head_block_bytes,
            device,
        )

    def samples(self, rows: list[SampleRow]) -> list[ScoredSample]:
        return self._both.samples("policy", rows, self._kl, "")


At = Callable[[Model], str]
"""Where every node finds a model (`pipeline.storage.local_copy`)."""


def model_stage(model: Model) -> PlannedStage:
    """A model's files, where nodes that share no disk can fetch them."""
    make = partial(copy_base, model_files(model.path))
    return _planned(Stage(MODEL, 1, make, contents={"model": model.digest}, local=True))


def sample_stage(run: RunConfig, model: Model, on: Common, encoded: Callable[[], Encoded], at: At) -> PlannedStage:
    """Sampling of one side.

    Args:
        run: with ``model.dtype`` decided.
        at: asked for only when the stage runs.
        encoded: the prompts for this model, asked for only when the stage runs.
    """

    def sample(context: StageContext) -> None:
        prompts = encoded()
        sampled = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"seeds": on.seeds})})
        rows = sample_prompts(sampled, at(model), prompts.prompts, context.progress, context.say)
        write_table(context.out_dir / "samples.parquet", rows, SampleRow)
        context.info |= {"cut": prompts.cut, "note": f"{len(rows):,} samples"}

    options = {
        **pick(run.evaluation, _OPTIONS),
        "seeds": list(on.seeds),
        "prompts": [dataclasses.asdict(prompt) for prompt in on.prompts],
        "max_prompt_tokens": run.data.max_prompt_tokens,
        **_numerics(run),
    }
    contents = {"model": model.digest} | function_digests("scorer", run.evaluation.scorers)
    return _planned(Stage(SAMPLE, 1, sample, options, contents=contents))


def drift_stage(run: RunConfig, base: Model, model: Model, samples: Mapping[str, Artifact], at: At) -> PlannedStage:
    """KL(base || model) at every token of samples, in nats; one table of `ScoredSample` for each artefact of samples.

    Args:
        run: with ``model.dtype`` decided.
        samples: artefacts of `sample_stage`, by the name of their table.
    """

    def drift(context: StageContext) -> None:
        budget = run.reference.batch_tokens
        calls = []
        for name, artifact in samples.items():
            rows = read_table(artifact.path / "samples.parquet", SampleRow)
            lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
            batches = token_batches(lengths, budget)
            calls += [(name, Call("samples", ([rows[i] for i in one],), f"{len(one)} outputs")) for one in batches]
        results = actor_results(
            DriftActor,
            (run.model_dump(mode="json"), at(base), at(model)),
            run.cluster,
            [call for _, call in calls],
            context.progress,
            context.say,
            lower="reference.batch_tokens, train.head_block_bytes, cluster.max_actors",
        )
        for name in samples:
            found = [row for (one, _), rows in zip(calls, results, strict=True) if one == name for row in rows]
            write_table(context.out_dir / f"{name}.parquet", found, ScoredSample)
        context.info["note"] = f"{sum(map(len, results)):,} outputs"

    options = {
        "samples": {name: artifact.key for name, artifact in samples.items()},
        "batch_tokens": run.reference.batch_tokens,
        "head_block_bytes": run.train.head_block_bytes,
        **_numerics(run),
    }
    return _planned(Stage(DRIFT, 1, drift, options, contents={"base": base.digest, "model": model.digest}))


def _numerics(run: RunConfig) -> dict[str, Any]:
    return {"dtype": run.model.dtype, "device": "cuda" if run.cluster.gpus_per_actor else "cpu"}


def _planned(stage: Stage) -> PlannedStage:
    return plan([stage], library_versions(LIBRARIES))[stage.name]


class Named:
    """An observer that is told of a stage by another name: both sides are sampled by stages of one name."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name

    def stage_started(self, name: str) -> None:
        self._observer.stage_started(self._name)

    def stage_progress(self, name: str, done: float, total: float, note: str = "") -> None:
        self._observer.stage_progress(self._name, done, total, note)

    def stage_finished(self, name: str, seconds: float, note: str = "") -> None:
        self._observer.stage_finished(self._name, seconds, note)

    def stage_reused(self, name: str) -> None:
        self._observer.stage_reused(self._name)

    def stage_failed(self, name: str, message: str) -> None:
        self._observer.stage_failed(self._name, message)

    def line(self, text: str) -> None:
        self._observer.line(text)
