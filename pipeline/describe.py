"""A dry run: the resolved run, its stages and what it will cost, printed without Ray and without writing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console as RichConsole
from rich.table import Table

from pipeline.artifacts import Store
from pipeline.config import RunConfig
from pipeline.console import duration
from pipeline.errors import ArtifactError
from pipeline.fitting import checkpoints_there_bytes, find_room
from pipeline.graph import PlannedStage, is_read
from pipeline.plan import Cost, Work, cost
from pipeline.recipes import resolved_yaml
from pipeline.records import SPLITS
from pipeline.reference.foresight import Foreseen
from pipeline.reference_speed import Speed, measure_speed, reference_actors
from pipeline.room import Room, refusal
from pipeline.storage import Storage
from pipeline.survey import model_directory, model_shape, token_counts
from pipeline.tiers import KINDS, choosing, chosen_kind, is_upper_bound, kind_name, loss_name, serves
from pipeline.units import bytes_text

_PLAIN_WIDTH = 140
"""Columns of a table in a file or a pipe, wide enough that nothing is folded."""
_SHORT_KEY = 8
_UNKNOWN = "not known before the data set is read from the hub"


def describe(
    run: RunConfig,
    planned: Mapping[str, PlannedStage],
    storage: Storage,
    stream: TextIO | None = None,
    *,
    foreseen: Foreseen | None = None,
) -> None:
    """Print the run as YAML, its stages and its cost to ``stream`` (default: stdout).

    ``planned`` are the stages with their keys; ``foreseen`` what the reference pass would find and do, where that is
    known. Nothing is created, the storage included.

    Raises:
        PipelineError: for data, a model or a storage that the run itself would refuse.
        ArtifactError: when the run clearly does not fit where it would write (after everything is printed).
    """
    store = storage.store(create=False)
    console = _console(stream)
    console.print(resolved_yaml(run), soft_wrap=True)
    seconds = {name: _seconds(store, name, item, is_read(item, planned, store)) for name, item in planned.items()}
    console.print(_stage_table(planned, seconds))
    to_do = [name for name, known in seconds.items() if known is None]
    console.print(f"\n{len(to_do)} of {len(planned)} stages to do, storage {storage.root}\n", soft_wrap=True)

    directory = model_directory(run.model, planned, store)
    shape = model_shape(run.model, directory)
    counts = token_counts(run, planned, store, directory)
    costs = cost(
        run,
        counts,
        shape,
        to_do,
        reference_there_bytes=foreseen.there_bytes if foreseen else 0,
        checkpoints_there_bytes=checkpoints_there_bytes(storage, planned, to_do),
    )
    room = find_room(run, storage)
    console.print(_cost_table(run, costs, room))
    if costs.work is not None:
        console.print("", _tier_table(run, costs, costs.work), "", sep="\n")
        speed = Speed(None, "not measured: nothing is left to compute")
        if "reference" in to_do and (foreseen is None or foreseen.computed_pairs):
            speed = measure_speed(run, costs.work.counts, shape, directory)
        console.print(_pass_table(run, costs.work, speed, foreseen))
    problem = refusal(costs, run, room)
    if problem:
        raise ArtifactError(problem)


def _console(stream: TextIO | None) -> RichConsole:
    stream = sys.stdout if stream is None else stream
    width = None if stream.isatty() else _PLAIN_WIDTH
    return RichConsole(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _seconds(store: Store, stage: str, item: PlannedStage, check: bool) -> float | None:
    """How long a committed stage took; None for one to do, which a damaged one is."""
    try:
        manifest = store.manifest(stage, item.key)
        if manifest is not None and check and item.stage.check is not None:
            item.stage.check(store.open(stage, item.key))
    except ArtifactError:
        return None
    return None if manifest is None else float(manifest["seconds"])


def _stage_table(planned: Mapping[str, PlannedStage], seconds: Mapping[str, float | None]) -> Table:
    table = _table("stage", "inputs", "key", "state")
    for name, item in planned.items():
        known = seconds[name]
        state = "to do" if known is None else f"done ({duration(known)})"
        style = None if known is None else "dim"
        table.add_row(name, ", ".join(item.stage.inputs) or "-", item.key[:_SHORT_KEY], state, style=style)
    return table


def _cost_table(run: RunConfig, costs: Cost, room: Room) -> Table:
    table = _table("cost", "amount", "how it is known")
    if costs.work is None:
        table.add_row("pairs, tokens, reference cache, steps, samples", "unknown", _UNKNOWN)
    else:
        _add_work(table, run, costs.work)
    model, about = costs.model, "" if costs.model.exact else "about "
    table.add_row("model parameters", f"{about}{model.parameters:,}", model.basis)
    table.add_row("one saved model", about + bytes_text(costs.saved_model_bytes), f"{costs.models_to_write} to write")
    at_most = is_upper_bound(chosen_kind(run.reference), run.reference) and costs.reference_to_write_bytes > 0
    about = "at most " if at_most else "" if costs.exact else "about "
    lacking = "" if costs.work else ", without the reference cache"
    table.add_row(
        "still to write", about + bytes_text(costs.to_write_bytes), f"reference cache and models to do{lacking}"
    )
    table.add_row("checkpoints while training", *_checkpoints(costs))
    table.add_row("free at the storage", *_free(room.storage_free, "now"))
    if run.reference.root is not None:
        shared = "now, the storage's own disk" if room.shared else "now"
        table.add_row("free at reference.root", *_free(room.references_free, shared))
    return table


def _checkpoints(costs: Cost) -> tuple[str, str]:
    if not costs.checkpoints_held:
        return "0 B", "no training to do"
    known = f"{costs.checkpoints_held} of {bytes_text(costs.checkpoint_bytes)} at one time, then removed"
    left = costs.checkpoints_held * costs.checkpoint_bytes - costs.checkpoints_to_write_bytes
    if left:
        known += f"; {bytes_text(left)} are there already"
    return f"at most {bytes_text(costs.checkpoints_to_write_bytes)}", known


def _free(free_bytes: int | None, known: str) -> tuple[str, str]:
    if free_bytes is None:
        return "unknown", "not on a disk of this machine, so nothing is refused for it"
    return bytes_text(free_bytes), known


def _add_work(table: Table, run: RunConfig, work: Work) -> None:
    counts = work.counts
    about = "" if counts.exact else "about "
    pairs = ", ".join(f"{name} {counts.pairs[name]:,}" for name in SPLITS)
    pair_tokens = sum(counts.prompt_tokens[name] + counts.response_tokens[name] for name in SPLITS)
    table.add_row("preference pairs", about + pairs, counts.basis)
    table.add_row("fine-tuning texts", f"{about}{counts.texts:,}", "")
    table.add_row("tokens in pairs", f"{about}{pair_tokens:,}", "")
    table.add_row("tokens in texts", f"{about}{counts.text_tokens:,}", "")
    if run.sft.enabled:
        exact = work.sft_steps_exact
        known = "the budget" if exact else f"for a budget of {run.sft.tokens:,} tokens"
        table.add_row("fine-tuning steps", ("" if exact else "about ") + f"{work.sft_steps:,}", known)
    table.add_row("alignment steps", f"{about}{work.align_steps:,}", f"{run.train.batch_size} pairs a step")
    prompts = work.samples_per_model // len(run.evaluation.seeds)
    table.add_row(
        "samples",
        f"{about}{2 * work.samples_per_model:,}",
        f"2 models x {prompts:,} prompts x {len(run.evaluation.seeds)} seeds",
    )


def _tier_table(run: RunConfig, costs: Cost, work: Work) -> Table:
    """Every tier of the reference cache: what it takes, whether the run's loss can be trained on it."""
    table = _table("reference cache", "bytes", f"serves {loss_name(run)}", "chosen by")
    for kind in KINDS:
        about = "at most " if is_upper_bound(kind, run.reference) else "" if costs.exact else "about "
        mine, fit = kind == chosen_kind(run.reference), serves(kind, run)
        table.add_row(
            kind_name(kind, run.reference),
            about + bytes_text(work.reference_bytes[kind]),
            "yes" if fit else "no",
            "this run" if mine else choosing(kind, run.reference) if fit else "-",
            style="bold" if mine else None,
        )
    return table


def _pass_table(run: RunConfig, work: Work, speed: Speed, foreseen: Foreseen | None) -> Table:
    """How long the reference pass will take."""
    table = _table("reference pass", "amount", "how it is known")
    about = "" if work.counts.exact else "about "
    if foreseen is not None:
        taken = f"{foreseen.taken_pairs:,} more are taken over from other caches, if their files are whole"
        table.add_row("pairs to compute", f"{foreseen.computed_pairs:,}", taken if foreseen.taken_pairs else "")
    tokens = work.reference_tokens if foreseen is None else foreseen.computed_tokens
    known = "prompt, chosen and rejected of training and validation pairs, a prompt once"
    table.add_row("tokens to compute", f"{about}{tokens:,}", known)
    if speed.tokens_per_s is None:
        table.add_row("tokens per second", "unknown", speed.basis)
        return table
    actors, where = reference_actors(run)
    table.add_row("tokens per second", f"about {speed.tokens_per_s:,.0f} an actor", speed.basis)
    seconds = tokens / speed.tokens_per_s / actors
    table.add_row(
        "time to compute", f"about {duration(seconds)}", f"{actors} actor(s), {where}; their start comes on top"
    )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
