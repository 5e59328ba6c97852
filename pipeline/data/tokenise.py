"""Stage ``tokens``: prepared pairs and texts to token ids, one tokenisation for every later stage.

Prompt and response are tokenised apart, so that a response has the same ids after every prompt; one EOS ends
a response and counts as one of its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pipeline.config import DataConfig
from pipeline.data.checks import DropLog, RowError
from pipeline.data.encode import Encoder, check_lengths
from pipeline.data.splits import hash_key, in_hash_order, require_splits, take
from pipeline.data.tables import read_table, write_json, write_jsonl, write_table
from pipeline.records import HELD_OUT, SPLITS, PairRow, PairTokens, PromptTokens, Split, TextRow, TextTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EQUAL_TOKENS = "equal after tokenisation"
EQUAL_TRUNCATED = "equal after truncation"

T = TypeVar("T", bound=PairRow | TextRow)


def tokenise(
    config: DataConfig, data_dir: Path, tokenizer: PreTrainedTokenizerBase, context_tokens: int, out_dir: Path
) -> None:
    """Write the files of the ``tokens`` artefact (see `pipeline.records`) from a ``data`` artefact.

    ``context_tokens`` is the longest sequence that the model takes. ``data.max_*_pairs`` apply to what is left
    after all rows are tokenised; the prompts are one of *every* held-out group all the same. Raises
    ConfigError for lengths beyond the context, ModelError for a tokenizer that cannot be used, DataError when
    too many rows do not fit or a split ends up empty.
    """
    check_lengths(config, context_tokens)
    encoder = Encoder(config, tokenizer)
    log = DropLog(config)
    total = 0
    pairs: dict[Split, list[PairTokens]] = {}
    prompts_cut: dict[str, int] = {}
    prompts: dict[Split, list[PromptTokens]] = {}
    for name in SPLITS:
        rows = read_table(data_dir / f"{name}.parquet", PairRow)
        total += len(rows)
        pairs[name], texts, prompts_cut[name] = tokenise_pairs(rows, encoder, log, f"{name}.parquet")
        if name in HELD_OUT:
            prompts[name] = sampling_prompts(pairs[name], texts)
    text_rows = read_table(data_dir / "sft.parquet", TextRow)
    total += len(text_rows)
    sft, prompts_cut["sft"] = _tokenise_texts(text_rows, encoder, log, "sft.parquet")
    log.finish(total)
    limits = (config.max_train_pairs, config.max_validation_pairs, config.max_test_pairs)
    pairs = {name: take(pairs[name], limit) for name, limit in zip(SPLITS, limits, strict=True)}
    groups = {name: len({pair.group for pair in pairs[name]}) for name in SPLITS}
    require_splits({name: len(pairs[name]) for name in SPLITS}, groups, "after tokenisation")

    for name in SPLITS:
        write_table(out_dir / f"{name}.parquet", pairs[name], PairTokens)
    write_table(out_dir / "sft.parquet", sft, TextTokens)
    for name, chosen in prompts.items():
        write_table(out_dir / f"prompts-{name}.parquet", chosen, PromptTokens)
    write_jsonl(out_dir / "dropped.jsonl", log.rows)
    stats = {
        "rows": {name: len(pairs[name]) for name in SPLITS},
        "groups": groups,
        "tokens": {name: _pair_token_counts(pairs[name]) for name in SPLITS},
        "sft": {
            "rows": len(sft),
            "tokens": {
                "prompt": sum(len(text.prompt_ids) for text in sft),
                "response": sum(len(text.response_ids) for text in sft),
            },
        },
        "prompts": {name: len(chosen) for name, chosen in prompts.items()},
        "prompts_cut": prompts_cut,
        "dropped": log.counts(),
    }
    write_json(out_dir / "stats.json", stats)


def content_digest(prompt_ids: Sequence[int], chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> str:
    """sha256 (hex) over the three id lists: the text of each as "1,2,3", joined by line breaks."""
    lists = (prompt_ids, chosen_ids, rejected_ids)
    return hashlib.sha256("\n".join(_id_text(ids) for ids in lists).encode("ascii")).hexdigest()


def sampling_prompts(pairs: Sequence[PairTokens], texts: dict[str, str]) -> list[PromptTokens]:
    """One prompt of every group, ordered by the hash of the group, so that the first n are a fair sample.

    ``texts`` holds the prompt's text by row id. Where two groups share a prompt (long ones can once they are
    cut), the later is left out: samples are identified by their prompt.
    """
    first: dict[str, PairTokens] = {}
    for pair in in_hash_order(pairs):
        first.setdefault(pair.group, pair)
    prompts: dict[str, PromptTokens] = {}
    for group in sorted(first, key=lambda name: (hash_key(name), name)):
        pair = first[group]
        prompt_id = hashlib.sha256(_id_text(pair.prompt_ids).encode("ascii")).hexdigest()[:16]
        prompts.setdefault(prompt_id, PromptTokens(prompt_id, group, texts[pair.row_id], pair.prompt_ids))
    return list(prompts.values())


class _Encoded(NamedTuple):
    """A row on its way: its place, its prompt's text, and whole ids that may still be too long."""

    where: str
    prompt: str
    prompt_ids: list[int]
    response_ids: list[list[int]]


def _encode(rows: Sequence[T], encoder: Encoder, log: DropLog, file: str) -> list[tuple[T, _Encoded]]:
    """Render every row and tokenise them all in few calls; rows that the chat template refuses go to the log."""
    rendered: list[tuple[T, str, str, list[str]]] = []
    for number, row in enumerate(rows, start=1):
        where = f"{file}:{number}"
        answers: tuple[str, ...] = (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.response,)
        try:
            rendered.append((row, where, *encoder.render(row.prompt, answers, row.chat)))
        except RowError as error:
            log.drop(where, row.row_id, error.reason, error.detail)
    prompt_ids = encoder.prompts([prompt for _, _, prompt, _ in rendered])
    response_ids = iter(encoder.responses([answer for _, _, _, texts in rendered for answer in texts]))
    return [
        (row, _Encoded(where, prompt, ids, [next(response_ids) for _ in texts]))
        for (row, where, prompt, texts), ids in zip(rendered, prompt_ids, strict=True)
    ]


def tokenise_pairs(
    rows: list[PairRow], encoder: Encoder, log: DropLog, file: str
) -> tuple[list[PairTokens], dict[str, str], int]:
    """The pairs that fit, their prompts' texts by row id, and how many of their prompts were cut."""
    kept, texts, cut = [], {}, 0
    for row, encoded in _encode(rows, encoder, log, file):
        try:
            chosen, rejected = (
                encoder.fit(ids, name) for ids, name in zip(encoded.response_ids, ("chosen", "rejected"), strict=True)
            )
            if chosen == rejected:
                same = encoded.response_ids[0] == encoded.response_ids[1]
                raise RowError(EQUAL_TOKENS if same else EQUAL_TRUNCATED)
        except RowError as error:
            log.drop(encoded.where, row.row_id, error.reason, error.detail)
            continue
        prompt = encoder.fit_prompt(encoded.prompt_ids)
        cut += len(prompt) < len(encoded.prompt_ids)
        content = content_digest(prompt, chosen, rejected)
        kept.append(PairTokens(row.row_id, row.group, prompt, chosen, rejected, content))
        texts[row.row_id] = encoded.prompt
    return kept, texts, cut


def _tokenise_texts(rows: list[TextRow], encoder: Encoder, log: DropLog, file: str) -> tuple[list[TextTokens], int]:
    """The fine-tuning texts that fit, and how many of their prompts were cut."""
    kept, cut = [], 0
    for row, encoded in _encode(rows, encoder, log, file):
        try:
            response = encoder.fit(encoded.response_ids[0], "response")
        except RowError as error:
            log.drop(encoded.where, row.row_id, error.reason, error.detail)
            continue
        prompt = encoder.fit_prompt(encoded.prompt_ids)
        cut += len(prompt) < len(encoded.prompt_ids)
        kept.append(TextTokens(row.row_id, prompt, response))
    return kept, cut


def _id_text(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def _pair_token_counts(pairs: list[PairTokens]) -> dict[str, int]:
    return {
        "prompt": sum(len(pair.prompt_ids) for pair in pairs),
        "chosen": sum(len(pair.chosen_ids) for pair in pairs),
        "rejected": sum(len(pair.rejected_ids) for pair in pairs),
    }
