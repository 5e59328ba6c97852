"""The evaluation stages: Ray actors sample from a model, or look at texts with reference and policy."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.actors import Call, Pool, map_over_actors
from pipeline.config import ClusterConfig, RunConfig
from pipeline.data.tables import read_table, write_table
from pipeline.progress import Report
from pipeline.records import PairScores, PairTokens, PromptTokens, SampleRow, ScoredSample
from pipeline.storage import local_copy

Say = Callable[[str], None]


def actor_device(cluster: ClusterConfig) -> Any:
    """What an actor computes on, with the threads that it may have."""
    import torch

    if cluster.gpus_per_actor > 0:
        return torch.device("cuda")
    torch.set_num_threads(max(1, int(cluster.cpus_per_actor)))
    return torch.device("cpu")


class SamplingActor:
    """Hosts one model, samples from it and scores the texts."""

    def __init__(self, run: dict[str, Any], model_dir: str) -> None:
        from pipeline.evaluation.scorers import load_scorers
        from pipeline.models.load import load_model, load_tokenizer, torch_dtype

        self._run = RunConfig.model_validate(run)
        self._device = actor_device(self._run.cluster)
        dtype = torch_dtype(self._run.model.dtype)
        model = local_copy(model_dir)
        self._model = load_model(model, dtype).to(self._device)
        self._tokenizer = load_tokenizer(model)
        self._scorers = load_scorers(self._run.evaluation.scorers)

    def sample(self, batch: list[tuple[PromptTokens, int]]) -> list[SampleRow]:
        from pipeline.evaluation.sampling import sample_batch

        rows = sample_batch(self._model, self._tokenizer, batch, self._run.evaluation, self._device)
        prompts, texts = [row.prompt for row in rows], [row.text for row in rows]
        scores = {name: scorer.score(prompts, texts) for name, scorer in self._scorers.items()}
        return [
            dataclasses.replace(row, scores={name: values[i] for name, values in scores.items()})
            for i, row in enumerate(rows)
        ]


class ScoringActor:
    """Hosts reference and policy and says what both think of every token."""

    def __init__(self, run: dict[str, Any], reference_dir: str, policy_dir: str, prompt_set: str) -> None:
        from pipeline.evaluation.annotate import BothModels, reported_measures
        from pipeline.models.load import load_model, load_tokenizer, torch_dtype
        from pipeline.risk.measures import trained_measure

        config = RunConfig.model_validate(run)
        device = actor_device(config.cluster)
        dtype = torch_dtype(config.model.dtype)
        self._trained = trained_measure(config.loss, config.risk)
        self._prompt_set = prompt_set
        reference, policy = local_copy(reference_dir), local_copy(policy_dir)
        self._both = BothModels(
            load_model(reference, dtype).to(device),
            load_model(policy, dtype).to(device),
            load_tokenizer(reference),
            reported_measures(self._trained),
            config.train.head_block_bytes,
            device,
        )

    def samples(self, model: str, rows: list[SampleRow]) -> list[ScoredSample]:
        return self._both.samples(model, rows, self._trained, self._prompt_set)

    def pairs(self, pairs: list[PairTokens]) -> list[PairScores]:
        return self._both.pairs(pairs)


def run_sampling(
    run: RunConfig, model_dir: str, tokens_dir: Path, out_dir: Path, report: Report, say: Say | None = None
) -> int:
    """Sample every prompt with every seed, score the texts, write samples.parquet; returns the number of samples.

    Args:
        model_dir: where the model is (`pipeline.storage.local_copy`).
        report: progress in batches.
        say: a line for the console, when an actor died.
    """
    config = run.evaluation
    prompts = read_table(tokens_dir / f"prompts-{config.split}.parquet", PromptTokens)[: config.num_prompts]
    rows = sample_prompts(run, model_dir, prompts, report, say)
    write_table(out_dir / "samples.parquet", rows, SampleRow)
    return len(rows)


def sample_prompts(
    run: RunConfig, model_dir: str, prompts: Sequence[PromptTokens], report: Report, say: Say | None = None
) -> list[SampleRow]:
    """One scored sample for every prompt and seed, prompt by prompt; the arguments are those of `run_sampling`."""
    config = run.evaluation
    work = [(prompt, seed) for prompt in prompts for seed in config.seeds]
    batches = [work[start : start + config.batch_size] for start in range(0, len(work), config.batch_size)]
    calls = [Call("sample", (batch,), f"batch {index} of the samples") for index, batch in enumerate(batches)]
    arguments = (run.model_dump(mode="json"), model_dir)
    results = actor_results(
        SamplingActor, arguments, run.cluster, calls, report, say, lower="evaluation.batch_size, cluster.max_actors"
    )
    return [row for batch in results for row in batch]


def run_evaluation(
    run: RunConfig,
    *,
    reference_dir: str,
    policy_dir: str,
    tokens_dir: Path,
    reference_samples: Path,
    policy_samples: Path,
    out_dir: Path,
    report: Report,
    say: Say | None = None,
) -> dict[str, Any]:
    """Score both models' samples and the pairs of the split, summarise, and write samples, pairs and evaluation.json.

    Args:
        reference_dir: where that model is, as ``policy_dir`` (`pipeline.storage.local_copy`).
        report: progress in batches.
        say: a line for the console, when an actor died.
    """
    from pipeline.evaluation.sampling import prompt_set_digest
    from pipeline.evaluation.summary import summarise
    from pipeline.models.batches import token_batches
    from pipeline.risk.measures import trained_measure

    samples = {"reference": read_table(reference_samples, SampleRow), "policy": read_table(policy_samples, SampleRow)}
    pairs = read_table(tokens_dir / f"{run.evaluation.split}.parquet", PairTokens)
    prompt_set = prompt_set_digest(sorted({row.prompt_id for row in samples["reference"]}))
    budget = run.reference.batch_tokens
    calls: list[Call] = []
    for model, rows in samples.items():
        lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
        calls += [
            Call("samples", (model, [rows[i] for i in batch]), f"batch {number} of the {model}'s samples")
            for number, batch in enumerate(token_batches(lengths, budget))
        ]
    lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    calls += [
        Call("pairs", ([pairs[i] for i in batch],), f"batch {number} of the {run.evaluation.split} pairs")
        for number, batch in enumerate(token_batches(lengths, budget // 2))
    ]
    arguments = (run.model_dump(mode="json"), reference_dir, policy_dir, prompt_set)
    results = actor_results(
        ScoringActor,
        arguments,
        run.cluster,
        calls,
        report,
        say,
        lower="reference.batch_tokens, train.head_block_bytes, cluster.max_actors",
    )
    everything = [row for batch in results for row in batch]
    scored = sorted(
        (row for row in everything if isinstance(row, ScoredSample)), key=lambda r: (r.model, r.prompt_id, r.seed)
    )
    pair_scores = sorted((row for row in everything if isinstance(row, PairScores)), key=lambda r: r.row_id)
    training = {"method": run.loss.method, "risk_label": trained_measure(run.loss, run.risk).label}
    evaluation = summarise(scored, pair_scores, run.evaluation, training)
    write_table(out_dir / "samples.parquet", scored, ScoredSample)
    write_table(out_dir / "pairs.parquet", pair_scores, PairScores)
    (out_dir / "evaluation.json").write_text(json.dumps(evaluation, indent=1, allow_nan=False))
    return evaluation


def actor_results(
    hosted: type[Any],
    arguments: tuple[Any, ...],
    cluster: ClusterConfig,
    calls: Sequence[Call],
    report: Report,
    say: Say | None,
    lower: str,
) -> list[Any]:
    """Results of calls on a ``hosted(*arguments)`` in actors of the cluster, in the order of the calls.

    Args:
        report: progress in batches.
        say: a line for the console, when an actor died.
        lower: the options that let an actor need less memory.
    """
    results: list[Any] = [None] * len(calls)
    done = itertools.count(1)

    def on_result(index: int, result: Any) -> None:
        results[index] = result
        report(next(done), len(calls), "batches")

    def on_death(what: str) -> None:
        if say is not None:
            say(f"an actor died while it computed {what}; another one computes it again")

    pool = Pool(cpus=cluster.cpus_per_actor, gpus=cluster.gpus_per_actor, max_actors=cluster.max_actors)
    map_over_actors(hosted, arguments, pool, calls, on_result, on_death=on_death, lower=lower)
    return results
