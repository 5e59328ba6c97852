"""Production's reward accuracy on pairs that it has never seen: a stage on Ray actors, kept like every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.actors import Call
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.data.checks import DropLog
from pipeline.data.encode import Encoder
from pipeline.data.prepare import content_of
from pipeline.data.tables import read_table, write_table
from pipeline.data.tokenise import tokenise_pairs
from pipeline.evaluation.stage import ScoringActor, actor_results
from pipeline.graph import PlannedStage, Stage, StageContext, execute, plan, reuse
from pipeline.keys import DATA_TOKENS, LIBRARIES, device, library_versions, pick, with_dtype
from pipeline.models.batches import token_batches
from pipeline.models.load import load_tokenizer
from pipeline.models.source import model_files
from pipeline.realign.accuracy import Accuracy
from pipeline.realign.rows import digest_of
from pipeline.records import PairRow, PairScores
from pipeline.release.line import Fetched
from pipeline.release.register import EVALUATION
from pipeline.stages import copy_base
from pipeline.storage import Storage

NAME = "measure"
REFERENCE, POLICY = "measure_reference", "measure_policy"


def prefers_chosen(pair: PairScores) -> bool:
    """Whether log pi/pi_ref is larger on chosen than on rejected."""
    return pair.chosen_logp - pair.chosen_ref_logp > pair.rejected_logp - pair.rejected_ref_logp


def accuracy_of(pairs: Sequence[PairScores]) -> Accuracy:
    """The share of such pairs."""
    return Accuracy(sum(map(prefers_chosen, pairs)), len(pairs))


def judged_by(version: Fetched) -> Accuracy | None:
    """A version's accuracy on the held-out pairs that it was judged by, as far as it holds them."""
    pairs = version.path / EVALUATION / "pairs.parquet"
    return accuracy_of(read_table(pairs, PairScores)) if pairs.is_file() else None


def measure(
    run: RunConfig, rows: Sequence[PairRow], reference: Fetched, policy: Fetched, storage: Storage, console: Console
) -> dict[str, bool]:
    """Of some pairs, by content, whether the policy prefers what was chosen: found in the store, or computed on Ray,
    which is joined for that. Pairs that are too long, or equal once they are tokenised, are left out, as in a training.
    """
    from pipeline.cluster import connected

    run = with_dtype(run)
    planned = measure_stages(run, rows, reference, policy, storage)
    store = storage.store()
    have = reuse(planned, store, console)
    if NAME not in have:
        cluster = run.cluster
        actors = {"cpus_per_worker": cluster.cpus_per_actor, "gpus_per_worker": cluster.gpus_per_actor}
        alone = cluster.model_copy(update={"num_workers": 1, "min_workers": 1, **actors})
        with connected(alone, storage, least_workers=0) as described:
            console.line(described)
            have = execute(planned, store, console, have)
    contents = {row.row_id: content_of(row) for row in rows}
    scores = read_table(have[NAME].path / "pairs.parquet", PairScores)
    return {contents[one.row_id]: prefers_chosen(one) for one in scores}


def measure_stages(
    run: RunConfig, rows: Sequence[PairRow], reference: Fetched, policy: Fetched, storage: Storage
) -> dict[str, PlannedStage]:
    """The measurement, known by the contents of both models and of the pairs. Where nodes share no disk, both models
    are copied into the store first."""

    def copy(model: Fetched) -> Callable[[StageContext], None]:
        return lambda context: copy_base(model_files(model.path), context)

    def compute(context: StageContext) -> None:
        where = {name: context.inputs[name].where for name in shared} or {
            REFERENCE: str(reference.path),
            POLICY: str(policy.path),
        }
        _compute(run, rows, reference.path, where, context)

    models = {REFERENCE: reference, POLICY: policy}
    shared = {} if storage.is_local else models
    copies = [Stage(name, 1, copy(one), contents={"model": one.id}, local=True) for name, one in shared.items()]

    stage = Stage(
        NAME,
        1,
        compute,
        options={
            **pick(run.data, DATA_TOKENS),
            "batch_tokens": run.reference.batch_tokens,
            "dtype": run.model.dtype,
            "device": device(run),
        },
        contents={
            "pairs": digest_of(map(content_of, rows)),
            "reference": reference.id,
            "policy": policy.id,
        },
        inputs=tuple(shared),
    )
    return plan([*copies, stage], library_versions(LIBRARIES))


def _compute(
    run: RunConfig, rows: Sequence[PairRow], reference: Path, where: Mapping[str, str], context: StageContext
) -> None:
    """``where`` both models are for the actors (`pipeline.storage.local_copy`)."""
    log = DropLog(run.data)
    pairs, _, _ = tokenise_pairs(list(rows), Encoder(run.data, load_tokenizer(reference)), log, "new pairs")
    if not pairs:
        write_table(context.out_dir / "pairs.parquet", [], PairScores)
        context.info["note"] = (
            f"none of the {len(rows):,} new pairs fits into data.max_response_tokens "
            f"({run.data.max_response_tokens}): a training leaves them out, too"
        )
        return
    lengths = [len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids)) for one in pairs]
    calls = [
        Call("pairs", ([pairs[i] for i in batch],), f"batch {number} of the new pairs")
        for number, batch in enumerate(token_batches(lengths, run.reference.batch_tokens // 2))
    ]
    arguments = (run.model_dump(mode="json"), where[REFERENCE], where[POLICY], "")
    lower = "reference.batch_tokens, train.head_block_bytes, cluster.max_actors"
    results = actor_results(ScoringActor, arguments, run.cluster, calls, context.progress, context.say, lower)
    scores = sorted((one for batch in results for one in batch), key=lambda one: one.row_id)
    accuracy = accuracy_of(scores)
    write_table(context.out_dir / "pairs.parquet", scores, PairScores)
    left = f", {len(rows) - len(pairs):,} could not be measured" if len(pairs) < len(rows) else ""
    context.info["note"] = f"production prefers what was chosen in {accuracy.right:,} of {accuracy.pairs:,} pairs{left}"
