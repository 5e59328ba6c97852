"""What can be known about data and model before a run, without writing anything.

Committed artefacts are asked first. Otherwise the source is read in this process and counted with the model's
own tokenizer; where that is not possible yet, tokens are estimated from characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.config import BUILD_GPT_NEOX, MADE_BY_THE_JOB, REVIEWS, SMOLLM2, ModelConfig, RunConfig
from pipeline.counting import SourceRows, counted, estimated_counts, measured_ratio, read_source
from pipeline.data.sources import is_local
from pipeline.data.tables import read_table
from pipeline.errors import ArtifactError, ModelError
from pipeline.graph import PlannedStage
from pipeline.models.size import stored_size
from pipeline.plan import ModelShape, TokenCounts, built_shape, counts_from_stats
from pipeline.records import SPLITS, PairRow, TextRow
from pipeline.tiers import id_bytes

CHARACTERS_PER_TOKEN = 3.3
"""For a tokenizer that does not exist yet."""
_SMOLLM2_CHARACTERS_PER_TOKEN = 4.0
"""Of English conversations."""

_TOKENISE_AT_MOST_CHARACTERS = 20_000_000
"""Larger data is measured on a subset: a description should take seconds."""


# -- the model ---------------------------------------------------------------------------------------------


def model_directory(config: ModelConfig, planned: Mapping[str, PlannedStage], store: Store) -> Path | None:
    """Where the base model and its tokenizer are; None while the job has still to make them.

    Call it after `pipeline.models.source.resolve_model`, which checks a directory and downloads a hub model.
    """
    if config.path in MADE_BY_THE_JOB:
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
        return _wheel_shape() if config.path == SMOLLM2 else built_shape(config.build)
    stored = stored_size(directory)
    hidden_size, vocab_size = _widths(config, directory)
    return ModelShape(
        stored.parameters,
        hidden_size,
        vocab_size,
        exact=True,
        basis="from its weight files",
        head_bias=stored.head_bias,
    )


def _wheel_shape() -> ModelShape:
    from pipeline.models.smollm2 import find_gguf, gguf_size

    size = gguf_size(find_gguf())
    return ModelShape(
        size.parameters, size.hidden_size, size.vocab_size, exact=True, basis="from the wheel's GGUF file"
    )


def _widths(config: ModelConfig, directory: Path) -> tuple[int, int]:
    """(d, V) of a model directory."""
    if config.path == BUILD_GPT_NEOX:
        written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return int(written["hidden_size"]), int(written["vocab_size"])
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False).get_text_config()
        return int(text.hidden_size), int(text.vocab_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load a causal language model from {directory}: {reason}") from error


# -- the data ----------------------------------------------------------------------------------------------


def token_counts(
    run: RunConfig, planned: Mapping[str, PlannedStage], store: Store, model: Path | None
) -> TokenCounts | None:
    """Rows and tokens of the run; None for a hub data set that no stage has read yet.

    ``model`` is the directory with the tokenizer, None when there is none yet. Raises what the stages ``data`` and
    ``tokens`` would raise for rows and lengths that cannot be used.
    """
    longest = _context_tokens(run.model, model)
    if longest is not None:
        from pipeline.data.encode import check_sampling

        check_sampling(run.data, run.evaluation.max_new_tokens, longest)
    tokens = _committed("tokens", planned, store)
    if tokens is not None:
        return counts_of(tokens)
    data = _committed("data", planned, store)
    if data is not None:
        rows = _committed_rows(data)
    else:
        if run.data.path != REVIEWS and not is_local(run.data.path):
            return None
        rows = read_source(run.data)
    from pipeline.data.encode import Encoder, check_lengths

    if longest is not None:
        check_lengths(run.data, longest)
    if model is None:
        ratio = _SMOLLM2_CHARACTERS_PER_TOKEN if run.model.path == SMOLLM2 else CHARACTERS_PER_TOKEN
        return estimated_counts(
            rows, run.data, ratio, f"estimated as characters / {ratio:g} (the tokenizer is not built yet)"
        )
    from pipeline.models.load import load_tokenizer

    encoder = Encoder(run.data, load_tokenizer(model))
    if rows.characters <= _TOKENISE_AT_MOST_CHARACTERS:
        return counted(rows, run.data, encoder)
    ratio = measured_ratio(rows, encoder)
    return estimated_counts(
        rows, run.data, ratio, f"estimated as characters / {ratio:.2f}, measured with the model's tokenizer on a part"
    )


def _context_tokens(config: ModelConfig, directory: Path | None) -> int | None:
    """Longest sequence of the model; None for one that is still to be built, which `pipeline.config` has checked."""
    if directory is not None:
        from pipeline.models.load import context_tokens

        return context_tokens(directory)
    if config.path == SMOLLM2:
        from pipeline.models.smollm2 import find_gguf, gguf_size

        return gguf_size(find_gguf()).context_tokens
    return None


def counts_of(tokens: Path) -> TokenCounts:
    """The exact counts of a ``tokens`` directory."""
    import pyarrow.parquet as pq

    stats = json.loads((tokens / "stats.json").read_text(encoding="utf-8"))
    row_ids = {name: pq.read_table(tokens / f"{name}.parquet", columns=["row_id"])["row_id"] for name in SPLITS}
    return counts_from_stats(stats, {name: id_bytes(column.to_pylist()) for name, column in row_ids.items()})


def _committed(stage: str, planned: Mapping[str, PlannedStage], store: Store) -> Path | None:
    """Directory of a committed artefact that is whole: a damaged one will be made again."""
    try:
        return store.open(stage, planned[stage].key).path
    except (KeyError, ArtifactError):
        return None


def _committed_rows(data: Path) -> SourceRows:
    pairs = {name: read_table(data / f"{name}.parquet", PairRow) for name in SPLITS}
    return SourceRows(pairs, read_table(data / "sft.parquet", TextRow))
