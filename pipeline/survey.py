"""What can be known about data and model before a run, without writing anything.

Committed artefacts are asked first. Otherwise the source is read in this process and counted with the model's
own tokenizer; where that is not possible yet, tokens are estimated from characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.artifacts import Store
from pipeline.config import BUILD_GPT_NEOX, REVIEWS, DataConfig, ModelConfig, RunConfig
from pipeline.errors import ArtifactError, ModelError
from pipeline.graph import PlannedStage
from pipeline.plan import ModelShape, TokenCounts, built_shape, counts_from_stats
from pipeline.records import SPLITS, PairRow, Split, TextRow

if TYPE_CHECKING:
    from pipeline.data.encode import Encoder

CHARACTERS_PER_TOKEN = 3.3
"""For a tokenizer that does not exist yet."""

_TOKENISE_AT_MOST_CHARACTERS = 20_000_000
"""Larger data is measured on a subset: a description should take seconds."""
_MEASURED_ROWS = 2_000

T = TypeVar("T", bound=PairRow | TextRow)


@dataclass(frozen=True)
class SourceRows:
    """Prepared rows, each list in hash order of the row id."""

    pairs: Mapping[Split, list[PairRow]]
    texts: list[TextRow]


@dataclass(frozen=True)
class Sized:
    """Lengths in tokens of one row that fits the limits; responses end with their EOS."""

    group: str
    prompt_key: object
    """Equal for rows whose prompts are the same tokens."""
    prompt: int
    responses: int


# -- the model ---------------------------------------------------------------------------------------------


def model_directory(config: ModelConfig, planned: Mapping[str, PlannedStage], store: Store) -> Path | None:
    """Where the base model and its tokenizer are; None while the job has still to build them.

    Call it after `pipeline.models.source.resolve_model`, which checks a directory and downloads a hub model.
    """
    if config.path == BUILD_GPT_NEOX:
        return _committed("base", planned, store)
    path = Path(config.path).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(config.path, revision=config.revision, local_files_only=True))


def model_shape(config: ModelConfig, directory: Path | None) -> ModelShape:
    """Size of the model in a directory, from its configuration and the headers of its weight files.

    Raises:
        ModelError: when transformers does not know the configuration, or a weight file is not one.
    """
    if directory is None:
        return built_shape(config.build)
    from safetensors import SafetensorError, safe_open

    parameters = 0
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="np") as file:
                parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model.path: {path} is no safetensors file ({error}); fetch or save it again") from error
    hidden_size, vocab_size = _widths(config, directory)
    return ModelShape(parameters, hidden_size, vocab_size, exact=True, basis="from its weight files")


def _widths(config: ModelConfig, directory: Path) -> tuple[int, int]:
    """(d, V) of a model directory."""
    if config.path == BUILD_GPT_NEOX:
        written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return int(written["hidden_size"]), int(written["vocab_size"])
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
        return int(text.hidden_size), int(text.vocab_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load a causal language model from {directory}: {reason}") from error


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(directory.glob("*.safetensors"))


# -- the data ----------------------------------------------------------------------------------------------


def token_counts(
    run: RunConfig, planned: Mapping[str, PlannedStage], store: Store, model: Path | None
) -> TokenCounts | None:
    """Rows and tokens of the run; None for a hub data set that no stage has read yet.

    ``model`` is the directory with the tokenizer, None when there is none yet. Raises what the stages ``data`` and
    ``tokens`` would raise for rows and lengths that cannot be used.
    """
    tokens = _committed("tokens", planned, store)
    if tokens is not None:
        return counts_from_stats(json.loads((tokens / "stats.json").read_text(encoding="utf-8")))
    data = _committed("data", planned, store)
    if data is not None:
        rows = _committed_rows(data)
    else:
        from pipeline.data.sources import is_local

        if run.data.path != REVIEWS and not is_local(run.data.path):
            return None
        rows = read_source(run.data)
    if model is None:
        return estimated_counts(
            rows,
            run.data,
            CHARACTERS_PER_TOKEN,
            f"estimated as characters / {CHARACTERS_PER_TOKEN:g}, as the tokenizer is not built yet",
        )
    from pipeline.data.encode import Encoder, check_lengths
    from pipeline.models.load import context_tokens, load_tokenizer

    check_lengths(run.data, context_tokens(model))
    encoder = Encoder(run.data, load_tokenizer(model))
    if sum(_characters(row) for row in _all_rows(rows)) <= _TOKENISE_AT_MOST_CHARACTERS:
        return counted(rows, run.data, encoder)
    ratio = measured_ratio(rows, encoder)
    return estimated_counts(
        rows, run.data, ratio, f"estimated as characters / {ratio:.2f}, measured with the model's tokenizer on a part"
    )


def read_source(config: DataConfig) -> SourceRows:
    """The rows that stage ``data`` would write, read in this process.

    Raises:
        DataError: for a source that cannot be read or used.
    """
    from pipeline.data.checks import DropLog
    from pipeline.data.prepare import read_pairs, split_pairs
    from pipeline.data.reviews import read_reviews, review_pairs, review_texts
    from pipeline.data.sources import read_rows
    from pipeline.data.splits import config_split, in_hash_order, require_splits

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
    from pipeline.data.checks import DropLog
    from pipeline.data.splits import require_splits

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
            found.append(Sized(row.group, row.prompt, prompt, responses))
        return found

    pairs = {name: sized(rows.pairs[name]) for name in SPLITS}
    return _totals(pairs, sized(rows.texts), config, exact=False, basis=basis)


def measured_ratio(rows: SourceRows, encoder: Encoder) -> float:
    """Characters per token of the first training pairs, which hash order makes a fair sample."""
    sample = rows.pairs["train"][:_MEASURED_ROWS]
    texts = [text for row in sample for text in (row.prompt, row.chosen, row.rejected)]
    return sum(map(len, texts)) / max(1, sum(map(len, encoder.responses(texts))))


def _tokenised(rows: Sequence[T], encoder: Encoder, log: Any, file: str) -> list[Sized]:
    from pipeline.data.checks import RowError

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
            fitted = [encoder.fit(one, "response") for one in ids]
            if len(fitted) == 2 and fitted[0] == fitted[1]:
                raise RowError("equal after tokenisation")
        except RowError as error:
            log.drop(where, row.row_id, error.reason, error.detail)
            continue
        prompt = encoder.fit_prompt(prompt_ids)
        found.append(Sized(row.group, tuple(prompt), len(prompt), sum(map(len, fitted))))
    return found


def _totals(
    pairs: Mapping[Split, list[Sized]], texts: list[Sized], config: DataConfig, *, exact: bool, basis: str
) -> TokenCounts:
    first: dict[str, object] = {}
    for row in pairs["test"]:
        first.setdefault(row.group, row.prompt_key)
    limits = (config.max_train_pairs, config.max_validation_pairs, config.max_test_pairs)
    used = {name: pairs[name][:limit] for name, limit in zip(SPLITS, limits, strict=True)}
    return TokenCounts(
        pairs={name: len(used[name]) for name in SPLITS},
        prompt_tokens={name: sum(row.prompt for row in used[name]) for name in SPLITS},
        response_tokens={name: sum(row.responses for row in used[name]) for name in SPLITS},
        texts=len(texts),
        text_tokens=sum(row.prompt + row.responses for row in texts),
        prompts=len(set(first.values())),
        exact=exact,
        basis=basis,
    )


def _committed(stage: str, planned: Mapping[str, PlannedStage], store: Store) -> Path | None:
    """Directory of a committed artefact that is whole: a damaged one will be made again."""
    try:
        return store.open(stage, planned[stage].key).path
    except (KeyError, ArtifactError):
        return None


def _committed_rows(data: Path) -> SourceRows:
    from pipeline.data.tables import read_table

    pairs = {name: read_table(data / f"{name}.parquet", PairRow) for name in SPLITS}
    return SourceRows(pairs, read_table(data / "sft.parquet", TextRow))


def _answers(row: PairRow | TextRow) -> tuple[str, ...]:
    return (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.response,)


def _all_rows(rows: SourceRows) -> Iterable[PairRow | TextRow]:
    for name in SPLITS:
        yield from rows.pairs[name]
    yield from rows.texts


def _characters(row: PairRow | TextRow) -> int:
    return len(row.prompt) + sum(map(len, _answers(row)))
