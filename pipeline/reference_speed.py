"""How fast an actor of the reference pass will be, measured on this machine on made-up pairs of the data's lengths.

Only the shape of model and pairs matters to the speed, so that a model which is not built yet is stood in for by
one of its size with random weights. Everything happens in this process, and nothing is written.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import MADE_BY_THE_JOB, SMOLLM2, ReferenceConfig, RunConfig
from pipeline.plan import ModelShape, TokenCounts, dtype_bytes, model_dtype
from pipeline.records import PairTokens
from pipeline.reference.key import SPLITS as REFERENCE_SPLITS

if TYPE_CHECKING:
    import torch

BUDGET_S = 5.0
"""Longest time for measuring, but for the first batch of one pair; a description should take seconds."""

_LOAD_AT_MOST_BYTES = 4 * 10**9
"""Weights that are loaded within seconds."""
_REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """Tokens (prompt, chosen and rejected) that one actor computes in a second."""

    tokens_per_s: float | None
    """None when it was not measured."""
    basis: str
    """What was measured, or why nothing was."""


def measure_speed(
    run: RunConfig, counts: TokenCounts, shape: ModelShape, model_dir: Path | None, budget_s: float = BUDGET_S
) -> Speed:
    """Compute batches of made-up pairs as an actor would and time the last.

    ``model_dir`` holds a model of the reference's architecture, None while there is none.

    Raises:
        ModelError: when the model cannot be loaded.
    """
    obstacle = _obstacle(run, shape, model_dir)
    if obstacle:
        return Speed(None, f"not measured: {obstacle}")
    prompt, response = mean_lengths(counts)
    with _threads(run.reference.threads):
        try:
            tokens, seconds = _timed(run, shape, model_dir, prompt, response, budget_s)
        except (MemoryError, RuntimeError) as error:  # torch has no error of its own for too little memory
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Speed(None, f"not measured: {reason}")
    how = "on a GPU" if run.cluster.gpus_per_actor > 0 else f"with {run.reference.threads} thread(s)"
    return Speed(tokens / seconds, f"measured now on {tokens:,} tokens {how}")


def mean_lengths(counts: TokenCounts) -> tuple[int, int]:
    """Mean tokens of a prompt and of a response in the pairs of the reference pass, at least 1 and 2."""
    pairs = max(1, sum(counts.pairs[split] for split in REFERENCE_SPLITS))
    prompts = sum(counts.prompt_tokens[split] for split in REFERENCE_SPLITS)
    responses = sum(counts.response_tokens[split] for split in REFERENCE_SPLITS)
    return max(1, round(prompts / pairs)), max(2, round(responses / (2 * pairs)))


def reference_actors(run: RunConfig) -> tuple[int, str]:
    """How many actors the pass will have, and why: what this machine holds, or the limit on a cluster."""
    cluster = run.cluster
    if cluster.address or os.environ.get("RAY_ADDRESS"):
        return cluster.max_actors, "cluster.max_actors, if the cluster has room for them"
    places = (os.cpu_count() or 1) // run.reference.threads
    if cluster.gpus_per_actor > 0:
        import torch

        places = min(places, int(torch.cuda.device_count() / cluster.gpus_per_actor + 1e-9))
    return max(1, min(cluster.max_actors, places)), "on this machine"


def timed_batch(
    compute: Callable[[int], object], largest: int, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Time ``compute(pairs)`` for twice as many pairs each time, up to ``largest`` or as the budget allows.

    Returns:
        The pairs of the last size, and the median of the seconds it took.
    """
    began = clock()

    def seconds_of(pairs: int) -> float:
        start = clock()
        compute(pairs)
        return clock() - start

    def left() -> float:
        return budget_s - (clock() - began)

    pairs, seconds = 1, seconds_of(1)
    if seconds <= left():
        seconds = seconds_of(1)  # the first call also warms up
    while pairs < largest:
        more = min(2 * pairs, largest)
        if seconds * more / pairs > left():
            return pairs, seconds
        pairs, seconds = more, seconds_of(more)
    times = [seconds]
    while len(times) < _REPEATS and seconds <= left():
        times.append(seconds_of(pairs))
    return pairs, statistics.median(times)


def _obstacle(run: RunConfig, shape: ModelShape, model_dir: Path | None) -> str | None:
    if run.cluster.gpus_per_actor > 0:
        import torch

        if not torch.cuda.is_available():
            return "the actors run on GPUs"
    if model_dir is None and run.model.path not in MADE_BY_THE_JOB:
        return "the model is not there yet"
    weights = shape.parameters * dtype_bytes(run)
    if weights > min(_LOAD_AT_MOST_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2):
        return f"the model's {weights / 1e9:,.0f} GB of weights are too many to load for a description"
    return None


def _timed(
    run: RunConfig, shape: ModelShape, model_dir: Path | None, prompt: int, response: int, budget_s: float
) -> tuple[int, float]:
    """(tokens, seconds) of the last batch."""
    import torch

    from pipeline.models.load import load_model, torch_dtype
    from pipeline.models.packing import can_pack
    from pipeline.reference.compute import computed_positions, reference_rows

    device = torch.device("cuda" if run.cluster.gpus_per_actor > 0 else "cpu")
    dtype = torch_dtype(model_dtype(run))
    model = _stand_in(run, shape).to(dtype) if model_dir is None else load_model(model_dir, dtype)
    model = model.to(device)
    packed = can_pack(model, 0, device, run.data.max_prompt_tokens, run.data.max_response_tokens)
    pairs = made_up_pairs(run.reference, shape.vocab_size, prompt, response)
    largest = max(1, run.reference.batch_tokens // computed_positions(pairs[0], packed))
    sized, seconds = timed_batch(
        lambda count: reference_rows(model, pairs[:count], run.reference, pad_id=0, device=device, packed=packed),
        min(largest, len(pairs)),
        budget_s,
    )
    return sized * (prompt + 2 * response), seconds


def _stand_in(run: RunConfig, shape: ModelShape) -> torch.nn.Module:
    """A random model of the size that the job will make."""
    if run.model.path == SMOLLM2:
        from pipeline.models.smollm2 import find_gguf, random_model

        return random_model(find_gguf())
    from pipeline.models.build import random_gpt_neox

    return random_gpt_neox(run.model.build, shape.vocab_size, 0).eval()


def made_up_pairs(options: ReferenceConfig, vocab_size: int, prompt: int, response: int) -> list[PairTokens]:
    """Pairs of random tokens and equal lengths: as many as a shard has."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return [
        PairTokens(str(number), "", tokens(prompt), tokens(response), tokens(response), "")
        for number in range(options.rows_per_shard)
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
