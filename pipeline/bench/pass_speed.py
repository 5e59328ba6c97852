"""How fast the reference pass is: by one actor and by several, and with prompts computed once or for every response.

The actors are those of the pass, started, warm, and waiting for one another before the first file is timed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.actors import Pool, map_over_actors
from pipeline.bench.material import WARM_UP_PAIRS, Material
from pipeline.bench.reference_config import ReferenceBenchmark
from pipeline.calls import Call
from pipeline.config import ClusterConfig, DataConfig, LossConfig, ModelConfig, ReferenceConfig, RunConfig
from pipeline.data.tables import read_table
from pipeline.errors import ClusterError
from pipeline.models.load import load_model, load_tokenizer
from pipeline.models.packing import can_pack, packed_length
from pipeline.places import Place
from pipeline.records import PairTokens
from pipeline.reference.actor import PassSpec, ReferenceActor
from pipeline.reference.compute import reference_rows
from pipeline.reference.cover import fixed_parts
from pipeline.reference.plan import Part, Piece
from pipeline.reference.shard_file import ShardFile

_START_TOGETHER_S = 300.0
"""Longest wait of an actor for the others."""


@dataclass(frozen=True)
class TimedPass:
    """One pass by ``actors`` actors."""

    actors: int
    startup_s: float
    """From the first thing asked of Ray to the first file: processes, imports, loading, warm-up."""
    seconds: float
    """From the beginning of the first file to the end of the last."""
    positions: int
    """Positions that the model computed."""

    @property
    def tokens_per_s(self) -> float:
        return self.positions / self.seconds


class TimedActor:
    """A reference actor that warms up, waits for its peers, and says when it computed what."""

    def __init__(self, spec: PassSpec, peers: int) -> None:
        self._actor = ReferenceActor(spec)
        self._actor.compute(Part(Piece("validation"), ((0, WARM_UP_PAIRS),)))
        arrived = Path(f"{spec.place}.arrived")
        arrived.mkdir(parents=True, exist_ok=True)
        (arrived / str(os.getpid())).touch()
        deadline = time.monotonic() + _START_TOGETHER_S
        while sum(1 for _ in arrived.iterdir()) < peers:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{peers} actors did not start within {_START_TOGETHER_S:g} s: run it on a free machine"
                )
            time.sleep(0.01)

    def compute(self, part: Part) -> tuple[float, float]:
        """When the computation of a file began and ended (seconds since the epoch, the same in all processes)."""
        began = time.time()
        self._actor.compute(part)
        return began, time.time()


def run_config(config: ReferenceBenchmark, material: Material, actors: int, **options: Any) -> RunConfig:
    """The run whose pass is measured; ``options`` are those of `ReferenceConfig` that tell its tier."""
    return RunConfig(
        data=DataConfig(
            path=config.pairs or "packed.jsonl",
            max_prompt_tokens=config.max_prompt_tokens,
            max_response_tokens=config.max_response_tokens,
            overlong="truncate",
        ),
        model=ModelConfig(path=str(material.model_dir), dtype="float32"),
        reference=ReferenceConfig(
            rows_per_shard=config.rows_per_shard(material.num_pairs),
            batch_tokens=config.batch_tokens,
            threads=1,
            **options,
        ),
        loss=LossConfig(method="dpo"),  # no tier is refused for it
        cluster=ClusterConfig(address=config.address, max_actors=actors),
    )


def timed_pass(config: ReferenceBenchmark, material: Material, actors: int, place: Path) -> TimedPass:
    """Compute all files of the pass (exact hidden states) with so many actors into the empty directory ``place``."""
    run = run_config(config, material, actors)
    spec = PassSpec(
        run.model_dump(mode="json"), str(material.model_dir), str(material.tokens_dir), str(place), "0" * 32
    )
    wanted = fixed_parts({"train": material.num_pairs}, run.reference.rows_per_shard, False)
    spans: list[tuple[float, float]] = []
    asked = time.time()
    map_over_actors(
        TimedActor,
        (spec, actors),
        Pool(cpus=1, gpus=0, max_actors=actors),
        [Call("compute", (part,), what=str(part.piece)) for part in wanted],
        lambda index, span: spans.append(span),
        lower="--pass_pairs, --batch_tokens",
    )
    first = min(began for began, _ in spans)
    return TimedPass(actors, first - asked, max(ended for _, ended in spans) - first, _positions(Place(str(place))))


def _positions(place: Place) -> int:
    """Positions computed for the files of the pass, as the files say."""
    statistics = [
        json.loads(ShardFile(place, name).metadata["statistics"]) for name in place.names() if name.startswith("train-")
    ]
    return sum(int(one["computed_tokens"]) for one in statistics)


def prompts_once(config: ReferenceBenchmark, material: Material) -> dict[str, Any]:
    """Seconds of the pass in this process, on one thread, with prompts computed once and for every response.

    Returns:
        ``seconds`` of both ways in every round (none when the model does not bear packing), and the ``tokens`` of
        the pairs, prompts counted once.
    """
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, tokenizer = load_model(material.model_dir, torch.float32), load_tokenizer(material.model_dir)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    pairs = read_table(material.tokens_dir / "train.parquet", PairTokens)
    options = run_config(config, material, 1).reference
    shards = [pairs[start : start + options.rows_per_shard] for start in range(0, len(pairs), options.rows_per_shard)]

    def seconds(packed: bool, some: list[list[PairTokens]]) -> float:
        began = time.perf_counter()
        for shard in some:
            reference_rows(model, shard, options, pad_id=pad_id, device=device, packed=packed)
        return time.perf_counter() - began

    found: dict[str, list[float]] = {"once": [], "separate": []}
    if can_pack(model, pad_id, device, config.max_prompt_tokens, config.max_response_tokens):
        for packed in (True, False):
            seconds(packed, shards[:1])
        for round_ in range(config.rounds):
            for name in ("once", "separate") if round_ % 2 == 0 else ("separate", "once"):
                found[name].append(seconds(name == "once", shards))
    return {"seconds": found, "tokens": sum(packed_length(pair) for pair in pairs)}
