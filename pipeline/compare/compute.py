"""What a comparison still lacks, computed on Ray; what the store has is taken from there, and no Ray is started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cache, partial

from pipeline.artifacts import Artifact, Store
from pipeline.cluster import connected
from pipeline.compare.alike import why_no_drift
from pipeline.compare.encode import Encoded, encode
from pipeline.compare.figures import Drift, Judged, Tokens
from pipeline.compare.sides import Model
from pipeline.compare.stages import MODEL, Named, drift_stage, model_stage, sample_stage
from pipeline.compare.subject import NAMES, Subject
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.data.tables import read_table
from pipeline.evaluation.scorers import Scorer
from pipeline.graph import PlannedStage, execute, reuse
from pipeline.records import SampleRow, ScoredSample
from pipeline.storage import Storage


class Computation:
    """The stages of one comparison; a context, at whose end Ray is left again.

    Args:
        run: with ``model.dtype`` decided.
        storage: where the store is.
    """

    def __init__(self, run: RunConfig, subject: Subject, store: Store, storage: Storage, console: Console) -> None:
        self._run, self._subject = run, subject
        self._store, self._storage, self._console = store, storage, console
        self._ray = contextlib.ExitStack()
        self._joined = False
        self._encoded: dict[str, Callable[[], Encoded]] = {
            name: cache(partial(encode, model, name, subject.on.prompts, run)) for name, model in subject.models.items()
        }
        self.sampling: dict[str, PlannedStage] = {
            name: sample_stage(run, model, subject.on, self._encoded[name], self._at)
            for name, model in subject.models.items()
        }

    def __enter__(self) -> Computation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ray.close()

    def samples(self) -> dict[str, Artifact]:
        """Samples of each side that is a model, by its name.

        Raises:
            ConfigError: before Ray is started, when a prompt is too long for a model.
        """
        for name, item in self.sampling.items():
            if not self._store.exists(item.stage.name, item.key):
                self._encoded[name]()
        return {name: self._made(f"sample {name}", item) for name, item in self.sampling.items()}

    def drifts(self, samples: Mapping[str, Artifact]) -> tuple[dict[str, Artifact], str | None]:
        """Drift between both sides ("between") and of each from the reference of their line (their names), and why
        there is none (`pipeline.compare.alike`)."""
        a, b = (self._subject.sides[name] for name in NAMES)
        between = None
        if isinstance(a, Model) and isinstance(b, Model):
            between = drift_stage(self._run, a, b, samples, self._at)
        # What was computed once can be: models need not be looked at again.
        there = between is not None and self._store.exists(between.stage.name, between.key)
        if not there and (why := why_no_drift(a, b)) is not None:
            return {}, why
        assert between is not None
        assert isinstance(a, Model)
        assert isinstance(b, Model)
        planned = {"between": ("drift", between)}
        if a.reference is not None and b.reference is not None:
            reference = Model("reference", a.reference)
            # Where one of them is the reference, the drift between them says it all.
            if reference.digest not in (a.digest, b.digest):
                for name, model in self._subject.models.items():
                    planned[name] = (
                        f"drift {name}",
                        drift_stage(self._run, reference, model, {name: samples[name]}, self._at),
                    )
        return {name: self._made(called, item) for name, (called, item) in planned.items()}, None

    def _made(self, called: str, item: PlannedStage) -> Artifact:
        name, observer = item.stage.name, Named(self._console, called)
        have = reuse({name: item}, self._store, observer)
        if not have:
            self._join()
            have = execute({name: item}, self._store, observer, {})
        return have[name]

    def _at(self, model: Model) -> str:
        if self._storage.is_local:
            return str(model.path)
        item = model_stage(model)
        return execute({MODEL: item}, self._store, Named(self._console, f"model {model.label}"))[MODEL].where

    def _join(self) -> None:
        if self._joined:
            return
        # Nothing is trained: an autoscaling cluster is asked for one actor, and another one must have room for one.
        cluster = self._run.cluster
        actors = {"cpus_per_worker": cluster.cpus_per_actor, "gpus_per_worker": cluster.gpus_per_actor}
        alone = cluster.model_copy(update={"num_workers": 1, "min_workers": 1, **actors})
        self._console.line(self._ray.enter_context(connected(alone, self._storage, least_workers=0)))
        self._joined = True


def judged(name: str, subject: Subject, samples: Mapping[str, Artifact], scorers: Mapping[str, Scorer]) -> Judged:
    """One side's outputs on the grid with their scores.

    Raises:
        EvaluationError: when a scorer fails on the outputs of a file.
    """
    on = subject.on
    if name in subject.outputs:
        rows = subject.outputs[name].rows
        prompts = [prompt.text for prompt in on.prompts for _ in on.seeds]
        texts = [rows[prompt.text][seed] for prompt in on.prompts for seed in on.seeds]
        return Judged(texts, {one: scorer.score(prompts, texts) for one, scorer in scorers.items()}, None)
    found = {(row.prompt_id, row.seed): row for row in read_table(samples[name].path / "samples.parquet", SampleRow)}
    ordered = [found[prompt.prompt_id, seed] for prompt in on.prompts for seed in on.seeds]
    scores = {one: [row.scores[one] for row in ordered] for one in scorers}
    return Judged([row.text for row in ordered], scores, [row.finished for row in ordered])


def drift_of(subject: Subject, made: Mapping[str, Artifact]) -> Drift:
    """What the artefacts of `Computation.drifts` hold, on the grid."""

    def tokens(artifact: Artifact, name: str) -> list[Tokens]:
        rows = read_table(artifact.path / f"{name}.parquet", ScoredSample)
        found = {(row.prompt_id, row.seed): Tokens(row.tokens, row.kl) for row in rows}
        return [found[prompt.prompt_id, seed] for prompt in subject.on.prompts for seed in subject.on.seeds]

    a, b = NAMES
    far = (tokens(made[a], a), tokens(made[b], b)) if a in made and b in made else None
    return Drift((tokens(made["between"], a), tokens(made["between"], b)), far)
