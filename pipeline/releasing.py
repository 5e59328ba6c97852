"""The last stages of an alignment: what the gate says of its policy, and the version that it becomes.

::

    evaluate ──────────────────────────────────────────────┬─► gate ──► register ──► report
    [sample_incumbent ──► evaluate_incumbent] ─────────────┘

What is in production is sampled and judged on the run's own prompts, unless its version holds an evaluation on exactly
these; when the reference is in production, the run's evaluation says all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import stages
from pipeline.catalogue import measure_label
from pipeline.config import OF_NO_STAGE, RISK_METHODS, RunConfig
from pipeline.data.tables import read_table, write_json
from pipeline.digests import digest_file, digest_json
from pipeline.errors import ArtifactError, ConflictError, PipelineError, RegistryError
from pipeline.evaluation.statistics import unseen_share_bound
from pipeline.evaluation.verdict import verdict_of
from pipeline.graph import Artifact, PlannedStage, Stage, StageContext
from pipeline.keys import EVALUATION_SAMPLES, LIBRARIES, code_digest, library_versions, pick
from pipeline.models.source import model_files
from pipeline.records import ScoredSample
from pipeline.release.evidence import Evidence, read_evidence
from pipeline.release.explain import explain as tokens_behind
from pipeline.release.gate import decide, judge, score_range
from pipeline.release.line import Fetched, Line
from pipeline.release.manifest import FileEntry, Manifest
from pipeline.release.mirror import mirror
from pipeline.release.register import (
    EVALUATION,
    EVALUATION_FILES,
    Verdict,
    judge_production,
    release,
    version_directory,
)
from pipeline.release.registry import OPTION, open_registry
from pipeline.release.standing import Standing, standing
from pipeline.release.trail import Record
from pipeline.release.wording import explain
from pipeline.report.card import CardInputs, card_html, card_markdown
from pipeline.report.language import translator
from pipeline.stages import read_json
from pipeline.storage import Storage, local_copy

_SAMPLES = "samples.parquet"
_JUDGED = ("data", "tokens", "align", "sample_reference", "evaluate")
"""Stages of whose results a version is made."""
PRODUCTION_ALONE = "production"
"""The stage that judges only what is in production."""
COPIES = "versions"
"""Below the storage: copies of versions whose registry is on an object store."""
NOT_THE_POLICY = {"cluster", "checkpoint", "wandb", "gate", "registry", "report", *OF_NO_STAGE}
"""Sections that change nothing about what a policy is."""


@dataclasses.dataclass(frozen=True)
class ReleaseParts:
    """What of a run its release needs to know."""

    recipe: str
    run: RunConfig
    storage: Storage
    root: str
    """Of the registry."""
    line: str
    reference: Callable[[StageContext], str]
    """Where the reference is (`pipeline.storage.local_copy`), once its stage's artefact is there."""
    reference_inputs: tuple[str, ...]
    data_digest: str
    planned: Mapping[str, PlannedStage]
    """The stages up to the evaluation."""
    fence: int | None = None
    """Token of the lease under which the run decides."""


class ReleaseStages:
    """The stages of a release, for a run and what it meets in the registry.

    Args:
        alone: judge only what is in production, by the run's data (stage `PRODUCTION_ALONE`).

    Raises:
        ConfigError: for a gate that cannot judge the run's scores.
        RegistryError: when the registry's trail was changed.
    """

    def __init__(self, parts: ReleaseParts, *, alone: bool = False) -> None:
        self._parts, self._run, self._alone = parts, parts.run, alone
        self._range = score_range(self._run.evaluation, self._run.gate)
        ends = [end if math.isfinite(end) else None for end in self._range]
        self._gate: dict[str, Any] = {"gate": self._run.gate.model_dump(mode="json"), "range": ends}
        self._policy = digest_json(self._gate)
        self._act = self._run.registry.decisions == "act"
        self._store = parts.storage.store(create=False)
        self._require_known()
        self.standing: Standing = standing(
            parts.root,
            parts.line,
            self._run.registry.alias,
            "" if alone else parts.planned["evaluate"].key,  # alone it is always what is there now
            self._policy,
            act=self._act,
        )

    def _require_known(self) -> None:
        """Refuse a registry that is not there any more: on an empty mount point a second one would begin, and its
        production at the reference."""
        root, line = self._parts.root, self._parts.line
        if line in open_registry(root).lines():
            return
        for key in self._store.list("register"):
            released = self._store.location("register", key)
            try:
                known = read_json(local_copy(released) / "release.json")
            except (OSError, ValueError, ArtifactError):
                continue  # damaged: it is made again
            if (known["root"], known["line"]) == (root, line):
                raise RegistryError(
                    f"the registry at {root} is gone: line {line} was there on {known['when'][:10]} with record "
                    f"{known['record']} ({known['digest'][:12]}). Mount or restore it, or set {OPTION} to begin "
                    f"another one; to begin anew in its place, remove {released.rpartition('/')[0]}"
                )

    def stages(self) -> list[Stage]:
        """From the evaluation of what is in production to the registered version."""
        incumbent, run = self.standing.incumbent, self._run
        graph: list[Stage] = []
        judged: tuple[str, ...] = ("evaluate",)
        contents: dict[str, str] = {}
        if incumbent is not None and self._holds_evaluation(incumbent):
            contents = {"incumbent": incumbent.digest}
        elif incumbent is not None:
            graph += self._evaluation_of_incumbent(incumbent.id)
            judged = ("evaluate", "evaluate_incumbent")
        if self._alone:
            return [*graph, self._production_stage(judged[1:], contents)]
        graph.append(Stage("gate", 1, self._judge, options=self._gate, inputs=judged, contents=contents, local=True))
        graph.append(
            Stage(
                "register",
                1,
                self._register,
                options=self.standing.options | {"decisions": run.registry.decisions, "policy": self._policy},
                inputs=(*_JUDGED, "gate", *self._parts.reference_inputs),
                check=self._check_registered,
                local=True,
            )
        )
        return graph

    def _production_stage(self, judged: tuple[str, ...], contents: Mapping[str, str]) -> Stage:
        """What the gate says of what is in production alone.

        Raises:
            ConflictError: when that is the reference.
        """
        if self.standing.incumbent is None:
            raise ConflictError(
                f"{self.standing.alias} of line {self.standing.line} points to the reference, against which there is "
                "nothing to judge"
            )
        return Stage(
            PRODUCTION_ALONE, 1, self._judge_alone, options=self._gate, inputs=judged, contents=contents, local=True
        )

    def _judge_alone(self, context: StageContext) -> None:
        decision = judge(self._incumbent_evidence(context), self._run.gate, self._range).as_dict()
        write_json(context.out_dir / "gate.json", decision)
        context.info["note"] = explain(decision)[0]

    def act_on_production(self, made: Artifact) -> tuple[Record, bool]:
        """Write down, and act on, what the stage `PRODUCTION_ALONE` says; returns the record, and whether it was there.

        Raises:
            ConflictError: when production has moved since, or the lease was taken over.
        """
        decision = read_json(made.path / "gate.json")
        verdict = Verdict(made.key, self._policy, decision, explain(decision)[0], [])
        return judge_production(self._line(), self.standing, verdict, act=self._act, fence=self._parts.fence)

    def _evaluation_of_incumbent(self, identity: str) -> list[Stage]:
        """Stages alike those of the policy, with a version for the model."""
        planned = self._parts.planned
        sampling, evaluation = planned["sample_policy"].stage, planned["evaluate"].stage
        contents = {"incumbent": identity}
        shared = () if self._parts.storage.is_local else ("incumbent",)
        copied = [Stage("incumbent", 1, self._copy_incumbent, contents=contents, local=True)] if shared else []
        return [
            *copied,
            dataclasses.replace(
                sampling,
                name="sample_incumbent",
                run=lambda context: stages.sample(self._run, self._incumbent_at(context), context),
                inputs=("tokens", *shared),
                contents={**sampling.contents, **contents},
            ),
            dataclasses.replace(
                evaluation,
                name="evaluate_incumbent",
                run=lambda context: stages.evaluate(
                    self._run, self._parts.reference(context), self._incumbent_at(context), "sample_incumbent", context
                ),
                inputs=("tokens", "sample_reference", "sample_incumbent", *shared, *self._parts.reference_inputs),
                contents={**evaluation.contents, **contents},
            ),
        ]

    def _copy_incumbent(self, context: StageContext) -> None:
        """What is in production, where every node can fetch it."""
        stages.copy_base(model_files(self._fetched().path), context)

    def _incumbent_at(self, context: StageContext) -> str:
        """Where what is in production is (`pipeline.storage.local_copy`)."""
        return context.inputs["incumbent"].where if "incumbent" in context.inputs else str(self._fetched().path)

    def _holds_evaluation(self, incumbent: Manifest) -> bool:
        """Whether a version was judged on exactly this run's prompts, beside exactly these outputs of the reference
        (equal keys give equal outputs on one kind of machine only)."""
        made = self._store.manifest("sample_reference", self._parts.planned["sample_reference"].key)
        if made is None or incumbent.provenance.get("comparable") != self._comparable():
            return False
        return bool(made["files"][_SAMPLES]["sha256"] == incumbent.provenance.get("reference_samples"))

    def _comparable(self) -> str:
        """Digest of all that an evaluation depends on beside the policy: equal ones may be compared."""
        planned = self._parts.planned
        return digest_json(
            {
                "evaluation": self._run.evaluation.model_dump(mode="json"),
                "version": planned["evaluate"].stage.version,
                "sampling": pick(self._run.evaluation, EVALUATION_SAMPLES),
                "samples": planned["sample_reference"].key,
                "tokens": planned["tokens"].key,
                "libraries": library_versions(LIBRARIES),
            }
        )

    def _line(self) -> Line:
        registry = open_registry(self._parts.root)
        return registry.line(self._parts.line)

    def _fetched(self) -> Fetched:
        """What is in production, every byte verified, where every node sees it."""
        assert self.standing.incumbent is not None
        return self._line().fetch(str(self.standing.incumbent.version), self._parts.storage.here / COPIES)

    def _judge(self, context: StageContext) -> None:
        incumbent = None if self.standing.incumbent is None else self._incumbent_evidence(context)
        candidate = read_evidence(context.inputs["evaluate"].path)
        decision = decide(candidate, incumbent, self._run.gate, self._range).as_dict()
        write_json(context.out_dir / "gate.json", decision)
        context.info["note"] = explain(decision)[0]

    def _incumbent_evidence(self, context: StageContext) -> Evidence:
        if "evaluate_incumbent" in context.inputs:
            return read_evidence(context.inputs["evaluate_incumbent"].path)
        return read_evidence(self._fetched().path / EVALUATION)

    def _register(self, context: StageContext) -> None:
        run, paths = self._run, {name: artifact.path for name, artifact in context.inputs.items()}
        decision = read_json(paths["gate"] / "gate.json")
        evaluation = read_json(paths["evaluate"] / "evaluation.json")
        samples = read_table(paths["evaluate"] / "samples.parquet", ScoredSample)
        behind = tokens_behind(samples, evaluation["primary_scorer"], evaluation["tail_fraction"]).as_dict()
        line = self._begin(context)
        provenance = self._provenance(line, paths["sample_reference"] / _SAMPLES)
        beside: dict[str, Path | str] = {
            **{f"{EVALUATION}/{name}": paths["evaluate"] / name for name in EVALUATION_FILES},
            f"{EVALUATION}/explanation.json": _json(behind),
            "prompts.parquet": paths["tokens"] / f"prompts-{run.evaluation.split}.parquet",
            "run.yaml": self._yaml(),
            "provenance.json": _json(provenance),
            **self._cards(self._card(context, provenance, evaluation, behind)),
        }
        headline = explain(decision)[0]
        verdict = Verdict(self._parts.planned["evaluate"].key, self._policy, decision, headline, list(behind["tokens"]))
        with version_directory(paths["align"] / "model", beside, context.out_dir) as directory:
            released = release(
                line, self.standing, directory, provenance, verdict, act=self._act, fence=self._parts.fence
            )
        move = next((one for one in released.record.event.moves if one.alias == self.standing.alias), None)
        result = {
            **self.standing.options,
            "version": released.manifest.version,
            "id": released.manifest.id,
            "incumbent": released.record.details["incumbent"],
            "outcome": decision["outcome"],
            "acted": released.record.details["acted"],
            "before": None if move is None else move.before,
            "after": None if move is None else move.after,
            "record": released.record.number,
            "digest": released.record.digest,
            "when": released.record.when,
        }
        write_json(context.out_dir / "release.json", result)
        if released.manifest.files.get("README.md") != _entry(beside["README.md"]):
            context.say(f"version {released.manifest.version} was there already: its card stays as it was written then")
        self._mirror(context, line, released.manifest, result)
        context.info["note"] = release_line(result)

    def _mirror(self, context: StageContext, line: Line, manifest: Manifest, result: Mapping[str, Any]) -> None:
        """To W&B: the version, and the reference when the alias went back to it."""
        here = self._parts.storage.here
        back = [line.versions.manifest(0)] if result["after"] == 0 else []
        for one in (manifest, *back):
            said = mirror(self._run.wandb, here / "wandb", line, one, result, here / COPIES)
            if said is not None:
                context.say(said)

    def _begin(self, context: StageContext) -> Line:
        """The reference's line, with its version 0."""
        if self._run.registry.line is not None:
            return self._line()
        run, reference = self._run, local_copy(self._parts.reference(context))
        what = run.model.path + (f", fine-tuned on {run.data.path}" if run.sft.enabled else "")
        provenance = {
            "recipe": self._parts.recipe,
            "method": "reference",
            "model": what,
            "code": code_digest(),
            "data": self._parts.data_digest,
            "stages": {name: self._parts.planned[name].key for name in self._parts.reference_inputs},
            "libraries": library_versions(LIBRARIES),
            "parents": [],
        }
        card = self._card(context, provenance)
        beside: dict[str, Path | str] = {"provenance.json": _json(provenance), **self._cards(card)}
        with version_directory(reference, beside, context.out_dir) as directory:
            return open_registry(self._parts.root).begin(self._parts.line, directory, what, provenance)

    def _card(
        self,
        context: StageContext,
        provenance: Mapping[str, Any],
        evaluation: dict[str, Any] | None = None,
        explanation: Mapping[str, Any] | None = None,
    ) -> CardInputs:
        """What a version's card is made from; the reference has no evaluation."""
        tr = translator(self._run.report.language)
        inputs = context.inputs
        name = tr("Policy of {recipe}") if evaluation else tr("Reference of {recipe}")
        return CardInputs(
            name=name.format(recipe=self._parts.recipe),
            config=self._run.model_dump(mode="json", exclude=set(OF_NO_STAGE)),
            provenance=provenance,
            language=self._run.report.language,
            evaluation=evaluation,
            verdict=None if evaluation is None else verdict_of(evaluation, tr),
            unseen_share=None if evaluation is None else unseen_share_bound(evaluation["num_prompts"]),
            explanation=explanation,
            data_stats=read_json(inputs["data"].path / "stats.json"),
            token_stats=read_json(inputs["tokens"].path / "stats.json"),
            notes=stages.notes(self._run),
        )

    @staticmethod
    def _cards(card: CardInputs) -> dict[str, Path | str]:
        return {"README.md": card_markdown(card), "card.html": card_html(card)}

    def _provenance(self, line: Line, reference_samples: Path) -> dict[str, Any]:
        run = self._run
        return {
            "recipe": self._parts.recipe,
            "method": _method(run),
            "model": run.model.path if run.registry.line is None else f"version 0 of line {run.registry.line}",
            "code": code_digest(),  # that registered it
            "config": digest_json(run.model_dump(mode="json", exclude=NOT_THE_POLICY)),
            "data": self._parts.data_digest,
            "reference": line.versions.manifest(0).id,
            "parents": [0],
            "stages": {name: item.key for name, item in self._parts.planned.items()},
            "comparable": self._comparable(),
            "reference_samples": digest_file(reference_samples),
            "libraries": library_versions((*LIBRARIES, "ray", "deepspeed")),
        }

    def _yaml(self) -> str:
        described = self._run.model_dump(mode="json", exclude=NOT_THE_POLICY)
        return yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=100)

    def moved_since(self, artifact: Artifact) -> str | None:
        """What became of the alias after the release, in a line; None when it is where that left it.

        Args:
            artifact: of the stage ``register``.
        """
        result = read_json(artifact.path / "release.json")
        left_at = result["incumbent"] if result["after"] is None else result["after"]
        alias = self._line().alias(str(result["alias"]))
        if alias.version == left_at:
            return None
        return (
            f"{result['alias']} was moved since: it points to version {alias.version} (audit record {alias.moved_by})"
        )

    def _check_registered(self, artifact: Artifact) -> None:
        """Whether the version is there still; raises when it has to be registered again."""
        result = read_json(artifact.path / "release.json")
        try:
            line = self._line()
            if result["version"] in line.state().removed:
                return  # given up on purpose
            if line.versions.require(result["version"], full=False).id != result["id"]:
                raise RegistryError(f"version {result['version']} in {line.place.root} is another one")
        except PipelineError as error:
            raise ArtifactError(f"the registered version is not there: {error}") from error


def _entry(text: Path | str) -> FileEntry:
    data = str(text).encode()
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def release_line(result: Mapping[str, Any]) -> str:
    """What a release did, in a line."""
    outcome = str(result["outcome"]).replace("_", " ").upper()
    alias = result["alias"]
    if result["after"] is not None:
        did = f"{alias}: version {result['before']} -> {result['after']}"
    elif result["outcome"] != "hold" and not result["acted"]:
        did = f"{alias} is left to you (registry.decisions: record)"
    else:
        did = f"{alias} stays at version {result['incumbent']}"
    return f"version {result['version']}: {outcome}, {did}"


def _method(run: RunConfig) -> str:
    """The loss with its measure of risk, such as ``ra_dpo2 cvar@0.5``."""
    risk = run.risk
    measure = [measure_label(risk.measure, risk.level, risk.weight)] if run.loss.method in RISK_METHODS else []
    return " ".join([run.loss.method, *measure])


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
