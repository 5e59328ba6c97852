"""Which prompts and seeds two sides are compared on. Pure.

Prompts are the same when their text is: sides may come from different tokenizers, or from no model at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.files import KNOWN_ENDINGS, ending, read_file
from pipeline.errors import DataError

_HALVES = re.compile("[\ud800-\udfff]")

Answers = Mapping[str, Mapping[int, str]]
"""Outputs by prompt and seed."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to compare on. ``prompt_id`` keys the noise of its samples, alike for both sides; ``ids`` are its
    tokens for the tokenizer that the prompts come from, where that is known."""

    text: str
    prompt_id: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Common:
    """What both sides are compared on: prompts in the order of their source, and seeds, ascending."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, int]
    """How many prompts of each source the comparison leaves out (those with none do not stand here)."""
    more_prompts: int
    """Prompts in common beyond the largest number that was asked for."""
    outputs_left_out: int
    """Outputs of compared prompts whose seed is not one of ``seeds``."""


def storable(text: str) -> str:
    """Text as UTF-8 can hold it: a JSON file may have halves of a character, which become replacement characters."""
    return _HALVES.sub("\ufffd", text)


def prompt_of(text: str) -> Prompt:
    """A prompt that is known by its text alone; the id is the text's sha256, shortened."""
    return Prompt(text, hashlib.sha256(text.encode()).hexdigest()[:16])


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, each text once: rows with ``prompt`` (JSONL and the like), or a Parquet file of
    `pipeline.records.PromptTokens`.

    Raises:
        DataError: for a file or row that cannot be used, and for a file without any prompt.
    """
    if ending(file) is None:
        raise DataError(f"{file} is no file of prompts: one of {', '.join(KNOWN_ENDINGS)} is needed")
    found: dict[str, Prompt] = {}
    owners: dict[str, str] = {}
    for where, row in read_file(file, str(file)):
        if not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise DataError(f"{where} has no text in 'prompt': every row needs one (chat messages as rendered text)")
        prompt = prompt_of(storable(row["prompt"]))
        named, ids = row.get("prompt_id"), row.get("prompt_ids")
        if isinstance(named, str) and isinstance(ids, list) and all(isinstance(one, int) for one in ids):
            prompt = Prompt(prompt.text, named, tuple(ids))
        if owners.setdefault(prompt.prompt_id, prompt.text) != prompt.text:
            raise DataError(f"{where} has the prompt_id {prompt.prompt_id!r} of another prompt: give each its own")
        found.setdefault(prompt.text, prompt)
    if not found:
        raise DataError(f'{file} holds no prompt: give rows such as {{"prompt": "..."}}')
    return list(found.values())


def common(
    sources: Mapping[str, Sequence[Prompt]],
    answers: Mapping[str, Answers],
    seeds: Collection[int],
    at_most: int,
    known: Sequence[Prompt] = (),
) -> Common:
    """The prompts that all have, and the seeds of which every one of them has an output.

    Args:
        sources: where prompts are taken from, by what each is called; one at least.
        answers: the sides that are outputs already, by what each is called; at most two.
        seeds: those that a model is sampled with. With two sides of outputs their own count.
        at_most: so many prompts are sampled from. With two sides of outputs all count.
        known: prompts whose ids and tokens are taken where a source has the text alone.

    Raises:
        DataError: when no prompt, or no seed, is left.
    """
    texts = {name: [prompt.text for prompt in prompts] for name, prompts in sources.items()}
    texts |= {name: list(outputs) for name, outputs in answers.items()}
    shared = set.intersection(*map(set, texts.values()))
    if not shared:
        counts = ", ".join(f"{len(mine)} in {name}" for name, mine in texts.items())
        raise DataError(
            f"no prompt is in common ({counts}): prompts are the same when their text is, to the last space; see "
            "whether one side has them with a template around"
        )
    left_out = {name: count for name, mine in texts.items() if (count := len(set(mine) - shared))}
    best: dict[str, Prompt] = {}
    for prompt in (*(prompt for prompts in sources.values() for prompt in prompts), *known):
        if prompt.text not in best or (prompt.ids and not best[prompt.text].ids):
            best[prompt.text] = prompt
    first = next(iter(texts.values()))
    ordered = [best.get(text) or prompt_of(text) for text in dict.fromkeys(first) if text in shared]
    chosen = ordered if len(answers) == 2 else ordered[:at_most]
    of_each = {name: [set(outputs[one.text]) for one in chosen] for name, outputs in answers.items()}
    given = set.intersection(*(one for all_of in of_each.values() for one in all_of)) if of_each else set(seeds)
    usable = given if len(answers) == 2 else given & set(seeds)
    if not usable:
        raise DataError(_no_seed(of_each, seeds, sampled=len(answers) < 2))
    used = sum(len(one) for all_of in of_each.values() for one in all_of)
    return Common(
        tuple(chosen),
        tuple(sorted(usable)),
        left_out,
        len(ordered) - len(chosen),
        used - len(usable) * len(chosen) * len(answers),
    )


def _no_seed(of_each: Mapping[str, Sequence[set[int]]], seeds: Collection[int], *, sampled: bool) -> str:
    have = "; ".join(f"{name} has {_some(set.union(*all_of))}" for name, all_of in of_each.items())
    asked = f", evaluation.seeds are {_some(seeds)}" if sampled else ""
    return (
        f"no seed is in common: every prompt needs an output of the same seed on both sides ({have}{asked}); the i-th "
        "output of a prompt is its seed i where the file names none"
        + ("; set --evaluation.seeds to those of the file" if sampled else "")
    )


def _some(seeds: Collection[int]) -> str:
    first = ", ".join(map(str, sorted(seeds)[:5]))
    return f"{first} and {len(seeds) - 5} more" if len(seeds) > 5 else first
