"""Preference rows before a run: read in this process, then counted in tokens or estimated from characters.

The same steps as the stages ``data`` and ``tokens``, in memory only: nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.config import DataConfig
from pipeline.data.checks import DropLog, RowError
from pipeline.data.prepare import read_pairs, split_pairs
from pipeline.data.reviews import read_reviews, review_pairs, review_texts
from pipeline.data.sources import read_rows
from pipeline.data.splits import config_split, in_hash_order, require_splits
from pipeline.data.tokenise import EQUAL_TOKENS
from pipeline.plan import TokenCounts
from pipeline.records import HELD_OUT, SPLITS, PairRow, Split, TextRow
from pipeline.tiers import id_bytes

if TYPE_CHECKING:
    from pipeline.data.encode import Encoder

_MEASURED_ROWS = 2_000
"""Training pairs that tell how many characters make a token."""

T = TypeVar("T", bound=PairRow | TextRow)


@dataclass(frozen=True)
class SourceRows:
    """Prepared rows, each list in hash order of the row id."""

    pairs: Mapping[Split, list[PairRow]]
    texts: list[TextRow]

    @property
    def characters(self) -> int:
        """Characters of all prompts and responses."""
        return sum(len(row.prompt) + sum(map(len, _answers(row))) for row in _all_rows(self))


@dataclass(frozen=True)
class Sized:
    """Lengths in tokens of one row that fits the limits; responses end with their EOS."""

    row_id: str
    group: str
    prompt_key: object
    """Equal for rows whose prompts are the same tokens."""
    prompt: int
    responses: int


def read_source(config: DataConfig) -> SourceRows:
    """The rows that stage ``data`` would write, read in this process.

    Raises:
        DataError: for a source that cannot be read or used.
    """
    log = DropLog(config)
    if config.format == "reviews":
        reviews, total = read_reviews(read_rows(config), log)
        pairs = review_pairs(reviews)
    else:
        pairs, total = read_pairs(read_rows(config), config, log)
    log.finish(total)
    splits = split_pairs(pairs, config)
    groups = {name: len({pair.group for pair in splits[name]}) for name in SPLITS}
    require_splits({name: len(splits[name]) for name in SPLITS}, groups, "after splitting by group")
    if config.format == "reviews":
        texts = in_hash_order(text for text in review_texts(reviews) if config_split(text.group, config) == "train")
    else:
        texts = [TextRow(one.row_id, one.group, one.prompt, one.chosen, one.chat) for one in splits["train"]]
    return SourceRows(splits, texts)


def counted(rows: SourceRows, config: DataConfig, encoder: Encoder) -> TokenCounts:
    """Counts as stage ``tokens`` will find them, by tokenising every row.

    Raises:
        DataError: when too many rows do not fit, or a split ends up empty.
    """
    log = DropLog(config)
    pairs = {name: _tokenised(rows.pairs[name], encoder, log, f"{name}.parquet") for name in SPLITS}
    texts = _tokenised(rows.texts, encoder, log, "sft.parquet")
    log.finish(sum(1 for _ in _all_rows(rows)))
    counts = _totals(pairs, texts, config, exact=True, basis="counted with the model's tokenizer")
    groups = {name: len({row.group for row in pairs[name]}) for name in SPLITS}
    require_splits(counts.pairs, groups, "after tokenisation")
    return counts


def estimated_counts(rows: SourceRows, config: DataConfig, characters_per_token: float, basis: str) -> TokenCounts:
    """Counts from numbers of characters. An estimate drops rows that look too long but refuses nothing."""

    def sized(some: Sequence[PairRow] | Sequence[TextRow]) -> list[Sized]:
        found = []
        for row in some:
            lengths = [math.ceil(len(answer) / characters_per_token) + 1 for answer in _answers(row)]
            if config.overlong == "drop" and max(lengths) > config.max_response_tokens:
                continue
            prompt = min(math.ceil(len(row.prompt) / characters_per_token), config.max_prompt_tokens)
            responses = sum(min(length, config.max_response_tokens) for length in lengths)
            found.append(Sized(row.row_id, row.group, row.prompt, prompt, responses))
        return found

    pairs = {name: sized(rows.pairs[name]) for name in SPLITS}
    return _totals(pairs, sized(rows.texts), config, exact=False, basis=basis)


def measured_ratio(rows: SourceRows, encoder: Encoder) -> float:
    """Characters per token of the first training pairs, which hash order makes a fair sample."""
    sample = rows.pairs["train"][:_MEASURED_ROWS]
    texts = [text for row in sample for text in (row.prompt, row.chosen, row.rejected)]
    return sum(map(len, texts)) / max(1, sum(map(len, encoder.responses(texts))))


def _tokenised(rows: Sequence[T], encoder: Encoder, log: DropLog, file: str) -> list[Sized]:
    rendered = []
    for number, row in enumerate(rows, start=1):
        where = f"{file}:{number}"
        try:
            rendered.append((row, where, *encoder.render(row.prompt, _answers(row), row.chat)))
        except RowError as error:
            log.drop(where, row.row_id, error.reason, error.detail)
    prompts = encoder.prompts([prompt for _, _, prompt, _ in rendered])
    responses = iter(encoder.responses([answer for _, _, _, answers in rendered for answer in answers]))
    found = []
    for (row, where, _, answers), prompt_ids in zip(rendered, prompts, strict=True):
        ids = [next(responses) for _ in answers]
        try:
            names = ("chosen", "rejected") if isinstance(row, PairRow) else ("response",)
            fitted = [encoder.fit(one, name) for one, name in zip(ids, names, strict=True)]
            if len(fitted) == 2 and fitted[0] == fitted[1]:
                raise RowError(EQUAL_TOKENS)
        except RowError as error:
            log.drop(where, row.row_id, error.reason, error.detail)
            continue
        prompt = encoder.fit_prompt(prompt_ids)
        found.append(Sized(row.row_id, row.group, tuple(prompt), len(prompt), sum(map(len, fitted))))
    return found


def _totals(
    pairs: Mapping[Split, list[Sized]], texts: list[Sized], config: DataConfig, *, exact: bool, basis: str
) -> TokenCounts:
    limits = (config.max_train_pairs, config.max_validation_pairs, config.max_test_pairs)
    used = {name: pairs[name][:limit] for name, limit in zip(SPLITS, limits, strict=True)}
    return TokenCounts(
        pairs={name: len(used[name]) for name in SPLITS},
        prompt_tokens={name: sum(row.prompt for row in used[name]) for name in SPLITS},
        response_tokens={name: sum(row.responses for row in used[name]) for name in SPLITS},
        texts=len(texts),
        text_tokens=sum(row.prompt + row.responses for row in texts),
        prompts={name: _different_prompts(pairs[name]) for name in HELD_OUT},
        id_bytes={name: id_bytes(row.row_id for row in used[name]) for name in SPLITS},
        exact=exact,
        basis=basis,
    )


def _different_prompts(rows: Iterable[Sized]) -> int:
    """Of the first row of every group."""
    first: dict[str, object] = {}
    for row in rows:
        first.setdefault(row.group, row.prompt_key)
    return len(set(first.values()))


def _answers(row: PairRow | TextRow) -> tuple[str, ...]:
    return (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.response,)


def _all_rows(rows: SourceRows) -> Iterable[PairRow | TextRow]:
    for name in SPLITS:
        yield from rows.pairs[name]
    yield from rows.texts
