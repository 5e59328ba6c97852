"""What a cache is, for a person: which model and data it belongs to, how large it is, and any damage. No Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.reference.cache import Found, ReferenceCache
from pipeline.reference.cover import fixed_parts
from pipeline.reference.plan import HEAD, Piece, Plan
from pipeline.reference.version import FORMAT

_SHORT = 16
"""Digits of a digest that are shown."""


@dataclass(frozen=True)
class Inspection:
    """What was found: ``rows`` of (what, value), damage by file name, and whether the pass was finished."""

    rows: list[tuple[str, str]]
    damaged: Mapping[str, str]
    finished: bool

    @property
    def sound(self) -> bool:
        return self.finished and not self.damaged


def inspect(place: Place) -> Inspection:
    """Verify every byte of a cache and say what it is.

    Raises:
        ArtifactError: when there is no cache, or one of another version.
    """
    cache = ReferenceCache(place)
    found = cache.verify()
    try:
        description = found.manifest or cache.description()
    except ArtifactError:
        description = None
        found.damaged["description.json"] = "differs from its own digest"
    if description is None and not found.files and not found.damaged:
        raise ArtifactError(
            f"there is no reference cache in {place.root}: give the directory of one, below reference.root or the "
            "storage's references/"
        )
    rows = [("cache", place.root), *(_described(description) if description else ())]
    rows += _files(found, description, cache.plan())
    if found.manifest is not None:
        rows += _numbers(found.manifest)
    return Inspection(rows, found.damaged, found.manifest is not None)


def show(inspection: Inspection, console: Console) -> None:
    """Print it: a table, then damage."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for what, value in inspection.rows:
        table.add_row(what, value)
    console.print(table)
    for name, why in sorted(inspection.damaged.items()):
        console.print(f"damaged: {name}: {why}", style="red", soft_wrap=True)
    if inspection.damaged:
        console.print("Run the job that made it again: only what is damaged is computed anew.", soft_wrap=True)
    elif not inspection.finished:
        console.print("The pass is unfinished: run the job that started it again, and it goes on.", soft_wrap=True)
    else:
        console.print("Every file agrees with its digest.")


def _described(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    made, names = description["made_from"], description["names"]
    compute, truncation = made["compute"], made["truncation"]
    yield "key", description["key"]
    yield "format", description["format"]
    yield "tier", ", ".join(f"{name} {value}" if name != "name" else value for name, value in made["tier"].items())
    yield "model", f"{names['model']} (weights {made['model'][:_SHORT]})"
    yield "tokenizer", made["tokenizer"][:_SHORT]
    splits = ", ".join(
        f"{split} {count:,} pairs ({made['data'][split][:_SHORT]})" for split, count in description["rows"].items()
    )
    yield "data", f"{names['data']}: {splits}"
    yield (
        "lengths",
        f"prompt {truncation['max_prompt_tokens']}, response {truncation['max_response_tokens']} tokens; a longer "
        f"response: {truncation['overlong']}",
    )
    libraries = ", ".join(f"{name} {version}" for name, version in compute["libraries"].items())
    yield (
        "computed",
        (
            f"in {compute['dtype']} on {compute['device']}, {compute['threads']} thread(s) an actor, "
            f"{compute['batch_tokens']:,} tokens a batch, {compute['rows_per_shard']} pairs a file; {libraries}"
        ),
    )


def _files(found: Found, description: Mapping[str, Any] | None, plan: Plan | None) -> Iterator[tuple[str, str]]:
    shards = [stored for piece, stored in found.files.items() if piece.split != HEAD]
    size = sum(stored.bytes for stored in found.files.values())
    wanted = ""
    if description is not None:
        made = description["made_from"]
        has_head = made["tier"]["name"] == "hidden"
        parts = (
            fixed_parts(description["rows"], made["compute"]["rows_per_shard"], has_head)
            if plan is None
            else plan.parts
        )
        wanted = f" of {len(parts)}"
    yield (
        "files",
        f"{len(found.files)}{wanted} whole, {size:,} bytes ({len(shards)} shards"
        + (f", head {found.files[Piece(HEAD)].bytes:,} bytes)" if Piece(HEAD) in found.files else ")"),
    )
    yield "state", "finished" if found.manifest is not None else "unfinished"


def _origin(origin: Mapping[str, Any]) -> str:
    """Where the rows come from; a cache that they were taken over from may have them from another."""
    taken = [f"{pairs:,} taken over from {key}" for key, pairs in origin["taken_over"].items()]
    return ", ".join([f"{origin['computed']:,} pairs computed for this cache", *taken])


def _numbers(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if manifest["format"] == FORMAT:
        yield "origin", _origin(manifest["origin"])
    counts = manifest["statistics"]
    stored = counts["response_tokens"]
    size = sum(one["bytes"] for one in manifest["shards"])
    yield "positions", f"{stored:,} stored, {size / stored:,.1f} bytes each without the head"
    yield (
        "computed positions",
        (f"{counts['computed_tokens']:,}; {counts['separate_tokens']:,} with every response after a prompt of its own"),
    )
    yield "vocabulary", f"{manifest['vocab_size']:,}"
    for name, tensor in manifest["tensors"].items():
        row = " x ".join(str(side) for side in tensor["row_shape"])
        yield f"tensor {name}", tensor["dtype"] + (f", {row} a row" if row else "")
    share = counts["chosen_likelier"] / counts["pairs"]
    yield (
        "log-probability",
        (
            f"{counts['logps'] / stored:.3f} nats a token on average; the chosen response is the likelier one in "
            f"{share:.1%} of {counts['pairs']:,} pairs; least likely response {counts['lowest_logp']:,.1f} nats"
        ),
    )
    if counts["measured_positions"]:
        yield (
            "8-bit error",
            (
                f"KL {counts['kl_sum'] / counts['measured_positions']:.2e} nats a position on average, largest "
                f"{counts['kl_max']:.2e}; a token's log-probability moves by at most {counts['logp_error_max']:.2e} "
                f"({counts['measured_positions']:,} positions measured)"
            ),
        )
