"""The concrete graph of one alignment run, readable from top to bottom.

::

    data ─► base ─► tokens ─► sft ─┬─► reference ─► align ─► sample_policy ─┬─► evaluate ─► gate ─► register ─► report
                                   └─► sample_reference ────────────────────┘

``base`` is there only when the run makes its own model directory, ``sft`` only when it has a budget, ``gate`` and
``register`` (`pipeline.releasing`) only when it has a registry. Each stage takes
the artefacts of its inputs and fills a directory of its own; what is in there is in `pipeline.records`. This
module alone knows all stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline import stages
from pipeline.artifacts import Artifact
from pipeline.checkpoints.location import run_directory
from pipeline.checkpoints.remote import open_run
from pipeline.config import BUILD_GPT_NEOX, OF_NO_STAGE, RunConfig
from pipeline.errors import ArtifactError
from pipeline.graph import PlannedStage, Stage, StageContext, plan, up_to
from pipeline.keys import (
    DATA_READING,
    DATA_TOKENS,
    EVALUATION_SAMPLES,
    LIBRARIES,
    REFERENCE_BATCHES,
    device,
    effective_loss,
    library_versions,
    pick,
    with_dtype,
)
from pipeline.models.source import ModelSource, resolve_model
from pipeline.places import Place
from pipeline.plugins import function_digests
from pipeline.reference.foresight import Foreseen, foresee
from pipeline.reference.key import tier_parts
from pipeline.reference.location import caches_at, check_cache
from pipeline.refusals import STORAGE
from pipeline.release.onward import on_line
from pipeline.release.registry import line_name, root_of
from pipeline.releasing import COPIES, PRODUCTION_ALONE, ReleaseParts, ReleaseStages
from pipeline.stages import read_json
from pipeline.storage import Folder, Storage, local_copy
from pipeline.training.spec import TrainSpec

RELEASE = {"gate", "register", "report", PRODUCTION_ALONE}
"""Stages for which the registry is looked at."""


@dataclasses.dataclass(frozen=True)
class ModelAt:
    """Where a model directory will be: inside a stage's artefact, or outside the graph."""

    stage: str | None
    inside: str
    outside: Path | None

    def at(self, context: StageContext) -> str:
        """Where it is (`pipeline.storage.local_copy`), once the stage's artefact is there."""
        return self.at_in(context.inputs)

    def at_in(self, artifacts: Mapping[str, Artifact]) -> str:
        """Where it is, with its stage's artefact among these."""
        if self.stage is None:
            return str(self.outside)
        return "/".join(filter(None, (artifacts[self.stage].where, self.inside)))

    @property
    def inputs(self) -> tuple[str, ...]:
        return () if self.stage is None else (self.stage,)


class AlignmentRun:
    """Stages of one run.

    Args:
        recipe: its name, for the report.
        run: the whole description.
        storage: where artefacts are; scratch directories of Ray Train and W&B are on the nodes.
        until: stages to stop after; none is the whole run.
        fence: token of the lease (`pipeline.lease.Lease.number`) under which the run decides what goes into production.
    """

    def __init__(
        self,
        recipe: str,
        run: RunConfig,
        storage: Storage,
        until: Collection[str] = (),
        *,
        fence: int | None = None,
    ) -> None:
        from pipeline.data.sources import source_digest
        from pipeline.evaluation.scorers import check_scorers

        check_scorers(run.evaluation)
        if ":" in run.risk.measure:
            from pipeline.risk.measures import trained_measure

            trained_measure(run.loss, run.risk)  # refuses a function that is no distortion
        run = with_dtype(run)
        source: ModelSource | None = None
        if run.registry.line is not None:
            run, source = on_line(run, root_of(storage, run.registry.root), storage.here / COPIES)
        self.recipe, self.run, self.storage, self._fence = recipe, run, storage, fence
        self._source: ModelSource = resolve_model(run.model) if source is None else source
        self._data_digest = source_digest(run.data)
        # Where nodes share no disk, a model from outside becomes an artefact like one that the job makes.
        inside = self._source.path is None or not storage.is_local
        self._model_contents = {} if inside else {"model": self._source.digest}
        self._base = ModelAt("base" if inside else None, "", self._source.path)
        self._reference = ModelAt("sft", "model", None) if run.sft.enabled else self._base
        self._policy = ModelAt("align", "model", None)
        graph = self._stages()
        self.release: ReleaseStages | None = None
        """What becomes of the policy; None when the run ends before, or has no registry."""
        if run.registry.enabled and (not until or set(until) & RELEASE):
            parts = self._release_parts(plan(graph, library_versions(LIBRARIES)))
            self.release = ReleaseStages(parts, alone=PRODUCTION_ALONE in until)
            graph += self.release.stages()
        planned = plan([*graph, self._report_stage(graph)], library_versions(LIBRARIES))
        self.planned: dict[str, PlannedStage] = up_to(planned, until) if until else planned
        self.reused: Collection[str] = ()
        """Stages that were committed before this job; set by the job, shown in the report."""

    def foreseen_reference(self, have: Mapping[str, Artifact]) -> Foreseen | None:
        """What the reference pass would find of an unfinished pass, or of other runs; None while its key cannot be
        known. ``have`` are committed artefacts."""
        stage = self._reference.stage
        if "tokens" not in have or (stage is not None and stage not in have):
            return None
        model = self._reference.outside if stage is None else have[stage].path / self._reference.inside
        assert model is not None
        return foresee(self.run, model, have["tokens"].path, self.storage)

    # -- the graph -----------------------------------------------------------------------------------------

    def _stages(self) -> list[Stage]:
        run = self.run
        numerics = {"dtype": run.model.dtype, "device": device(run), "head_block_bytes": run.train.head_block_bytes}
        base, reference = self._base.inputs, self._reference.inputs
        sampling = pick(run.evaluation, EVALUATION_SAMPLES) | {"dtype": run.model.dtype, "device": device(run)}
        scorers = function_digests("scorer", run.evaluation.scorers)
        loss = effective_loss(run)
        graph = [
            Stage(
                "data",
                1,
                lambda context: stages.prepare_data(run, context),
                options=pick(run.data, DATA_READING),
                contents={"data": self._data_digest},
                local=True,
            ),
            Stage(
                "tokens",
                2,
                self._tokenise,
                options=pick(run.data, DATA_TOKENS),
                inputs=("data", *base),
                contents=self._model_contents,
                local=True,
            ),
            Stage(
                "reference",
                2,
                self._compute_reference,
                options={
                    "tier": tier_parts(run.reference),
                    **pick(run.reference, REFERENCE_BATCHES),
                    "dtype": run.model.dtype,
                    "device": "cuda" if run.cluster.gpus_per_actor else "cpu",
                },
                inputs=("tokens", *reference),
                contents=self._model_contents,
                check=lambda artifact: check_cache(self.cache_place(artifact)),
                read_by=("align",),
            ),
            Stage(
                "align",
                3,
                self._align,
                options={"train": run.train.model_dump(mode="json"), **numerics, **loss},
                inputs=("tokens", "reference", *reference),
                contents=self._model_contents,
            ),
            Stage(
                "sample_reference",
                1,
                lambda context: stages.sample(run, self._reference.at(context), context),
                options=sampling,
                inputs=("tokens", *reference),
                contents=self._model_contents | scorers,
            ),
            Stage(
                "sample_policy",
                1,
                lambda context: stages.sample(run, self._policy.at(context), context),
                options=sampling,
                inputs=("tokens", "align"),
                contents=scorers,
            ),
            Stage(
                "evaluate",
                2,
                lambda context: stages.evaluate(
                    run, self._reference.at(context), self._policy.at(context), "sample_policy", context
                ),
                options={
                    "evaluation": run.evaluation.model_dump(mode="json"),
                    "batch_tokens": run.reference.batch_tokens,
                    **numerics,
                    **loss,
                },
                inputs=("tokens", "align", "sample_reference", "sample_policy", *reference),
                contents=self._model_contents,
            ),
        ]
        if run.model.path == BUILD_GPT_NEOX:
            options = run.model.build.model_dump(mode="json")
            graph.append(
                Stage("base", 1, lambda context: stages.build_base(run, context), options, inputs=("data",), local=True)
            )
        elif self._base.stage is not None:
            convert = self._source.path is None
            make = stages.convert_base if convert else lambda context: stages.copy_base(self._source.files(), context)
            graph.append(Stage("base", 1, make, contents={"model": self._source.digest}, local=True))
        if run.sft.enabled:
            graph.append(
                Stage(
                    "sft",
                    2,
                    self._fine_tune,
                    options=run.sft.model_dump(mode="json") | numerics,
                    inputs=("tokens", *base),
                    contents=self._model_contents,
                )
            )
        return graph

    def _report_stage(self, graph: Sequence[Stage]) -> Stage:
        described = self.run.model_dump(mode="json", exclude={"cluster", "checkpoint", "wandb", *OF_NO_STAGE})
        of_report = {"recipe": self.recipe, "run": described}
        names = tuple(stage.name for stage in graph)
        return Stage("report", 2, self._report, options=of_report, inputs=names, check=self._check_report, local=True)

    def _check_report(self, artifact: Artifact) -> None:
        """Whether it shows the release that there is: what was registered again has another audit record."""
        release = read_json(artifact.path / "summary.json")["release"]
        if release is None:
            return
        store = self.storage.store(create=False)
        with contextlib.suppress(KeyError):
            made = store.open("register", self.planned["register"].key)
            if read_json(made.path / "release.json")["digest"] == release["digest"]:
                return
        raise ArtifactError("its policy was registered anew")

    def _release_parts(self, planned: Mapping[str, PlannedStage]) -> ReleaseParts:
        run = self.run
        return ReleaseParts(
            recipe=self.recipe,
            run=run,
            storage=self.storage,
            root=root_of(self.storage, run.registry.root),
            line=self._line_name(planned),
            reference=self._reference.at,
            reference_inputs=self._reference.inputs,
            data_digest=self._data_digest,
            planned=planned,
            fence=self._fence,
        )

    def _line_name(self, planned: Mapping[str, PlannedStage]) -> str:
        """The reference's line, known before the reference is: by the key of the stage that makes it."""
        if self.run.registry.line is not None:
            return self.run.registry.line
        made_by = self._reference.stage
        outside = self._reference == self._base and self._source.path is not None
        return line_name(self._source.digest if made_by is None or outside else planned[made_by].key)

    # -- what the stages do --------------------------------------------------------------------------------

    def _tokenise(self, context: StageContext) -> None:
        from pipeline.data.encode import check_sampling
        from pipeline.data.tokenise import tokenise
        from pipeline.fitting import require_room
        from pipeline.models.load import context_tokens, load_tokenizer
        from pipeline.survey import counts_of

        model = local_copy(self._base.at(context))
        longest = context_tokens(model)
        check_sampling(self.run.data, self.run.evaluation.max_new_tokens, longest)
        tokenise(self.run.data, context.inputs["data"].path, load_tokenizer(model), longest, context.out_dir)
        pairs = read_json(context.out_dir / "stats.json")["rows"]
        context.info["note"] = ", ".join(f"{name} {count:,}" for name, count in pairs.items()) + " pairs"
        # The counts are exact now, and nothing that is expensive has run yet.
        store = self.storage.store(create=False)
        known = self._reference.stage != "sft"
        foreseen = foresee(self.run, model, context.out_dir, self.storage) if known else None
        there = foreseen.there_bytes if foreseen else 0
        counts = counts_of(context.out_dir)
        require_room(self.run, self.planned, store, self.storage, counts, model, reference_there_bytes=there)

    def _fine_tune(self, context: StageContext) -> None:
        self._train("sft", context)

    def _compute_reference(self, context: StageContext) -> None:
        from pipeline.reference.cache import manifest_files
        from pipeline.reference.stage import run_reference

        result = run_reference(
            self.run,
            self._reference.at(context),
            context.inputs["tokens"].where,
            caches_at(self.run.reference.root, self.storage),
            {
                "model": self.run.model.path + (", fine-tuned" if self.run.sft.enabled else ""),
                "data": self.run.data.path,
            },
            context.progress,
            context.say,
        )
        manifest = result.manifest
        (context.out_dir / "cache.json").write_text(json.dumps({"key": manifest["key"]}))
        size = sum(one["bytes"] for one in manifest_files(manifest))
        pairs = manifest["statistics"]["pairs"]
        note = f"{pairs:,} pairs"
        if result.taken_rows:
            note += f", {result.taken_rows:,} taken over, {result.computed_rows:,} computed"
        note += f", {self.run.reference.tier} tier, {size / 1e6:,.1f} MB"
        if not result.computed and not result.taken_rows:
            note += ", all there before"
        context.info["note"] = note

    def cache_place(self, artifact: Artifact) -> str:
        """Where the cache is that a reference artefact stands for."""
        caches = caches_at(self.run.reference.root, self.storage)
        return caches.below(read_json(artifact.path / "cache.json")["key"]).root

    def _align(self, context: StageContext) -> None:
        self._train("align", context)

    def _train(self, kind: Literal["sft", "align"], context: StageContext) -> None:
        from pipeline.training.stage import run_training

        self.remove_checkpoints()  # of the training before this one
        spec = self.training(kind, context.inputs, context.where, self.run_directory(kind))
        result = run_training(spec, self.storage.for_ray("ray_train"), context.progress, context.say)
        context.sent |= result.sent
        context.info |= {name: value for name, value in dataclasses.asdict(result).items() if name != "sent"}
        record = json.loads(Place(context.where, STORAGE).read("training.json"))
        skipped = f", {record['skipped_steps']} left out" if record["skipped_steps"] else ""
        tries = f", {result.attempts} attempts" if result.attempts > 1 else ""
        context.info["note"] = (
            f"{record['steps']:,} steps{skipped}, {record['workers']} workers, ZeRO-{record['zero_stage']}, "
            f"{result.seconds_per_step:.2f} s a step{tries}"
        )

    def training(
        self,
        kind: Literal["sft", "align"],
        inputs: Mapping[str, Artifact],
        out_dir: str,
        run_dir: str,
        num_workers: int | None = None,
    ) -> TrainSpec:
        """The description of a training stage for its workers.

        Args:
            out_dir: where the files of its artefact go, ``run_dir`` those of its checkpoints: a directory or a URL.
            num_workers: another number than the run's.
        """
        model = self._reference if kind == "align" else self._base
        reference = self.cache_place(inputs["reference"]) if kind == "align" else None
        run = self.run.model_dump(mode="json")
        if num_workers is not None:
            run["cluster"] |= {"num_workers": num_workers, "min_workers": num_workers}
        return TrainSpec(
            kind=kind,
            run=run,
            model_dir=model.at_in(inputs),
            tokens_dir=inputs["tokens"].where,
            reference=reference,
            out_dir=out_dir,
            run_dir=run_dir,
            identity=self._identity(kind, reference),
            wandb_dir=self.storage.at("wandb"),
            name=f"{self.recipe}-{kind}-{self.planned[kind].key[:8]}",
        )

    def run_directory(self, kind: str) -> str:
        """Where a training stage keeps its checkpoints until its artefact is committed."""
        return run_directory(self.storage.root, kind, self.planned[kind].key)

    def _identity(self, kind: str, reference: str | None) -> dict[str, Any]:
        made_from = self.planned[kind].made_from
        model = made_from["inputs"].get(self._reference.stage if kind == "align" else self._base.stage)
        return {
            "options": made_from["options"],
            "libraries": made_from["libraries"],
            "data": made_from["inputs"]["tokens"],
            "model": model or made_from["contents"]["model"],
            "reference": reference and Path(reference).name,
        }

    @property
    def published(self) -> Folder:
        """Where a person finds the report of the whole run."""
        return self.storage.folder("reports", f"{self.recipe}-{self.planned['report'].key[:8]}")

    def under_way(self) -> bool:
        """Whether a training has left checkpoints from which this run will go on."""
        store = self.storage.store(create=False)
        to_do = [kind for kind in ("sft", "align") if kind in self.planned]
        return any(
            open_run(self.run_directory(kind), {}).steps()
            for kind in to_do
            if not store.exists(kind, self.planned[kind].key)
        )

    def remove_checkpoints(self) -> None:
        """Remove what no committed training needs any more, also of a job that was killed before it came to that."""
        store = self.storage.store(create=False)
        for kind in ("sft", "align"):
            if kind in self.planned and store.exists(kind, self.planned[kind].key):
                open_run(self.run_directory(kind), {}).remove()

    def _report(self, context: StageContext) -> None:
        made = [
            {
                "name": name,
                "key": self.planned[name].key,
                "seconds": context.inputs[name].seconds,
                "reused": name in self.reused,
            }
            for name in self.planned
            if name in context.inputs
        ]
        stages.report(self.run, self.recipe, made, context)
