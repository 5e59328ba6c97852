"""Options of the benchmark (nothing heavy is imported here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.section import Section

BASELINE = "cross_entropy"


class BenchmarkConfig(Section):
    """Time and memory of the output head, forward and backward, beside what it replaces."""

    vocabularies: tuple[PositiveInt, ...] = (2048, 49152, 151936)
    """Vocabulary sizes."""
    positions: PositiveInt = 1024
    """Response positions in a batch."""
    pairs: PositiveInt = 8
    """Preference pairs they are split into, chosen and rejected of equal length."""
    hidden: PositiveInt = 576
    """Width of the hidden states."""
    level: float = Field(0.95, gt=0, le=1)
    """Level of CVaR (and of the published code's rule)."""
    top_k: PositiveInt = 256
    """Size of the top-k record."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: PositiveInt = 7
    """Timed rounds; every subject runs once in each, in changing order."""
    slow_rounds: PositiveInt = 3
    """Of those, rounds in which the whole-tensor computations take part."""
    threads: PositiveInt = 2
    """CPU threads (and CPUs asked of Ray)."""
    gpus: int = Field(0, ge=0, le=1)
    """1 runs on a GPU."""
    block_bytes: PositiveInt = 128 * 2**20
    """Memory for one block of logits, as train.head_block_bytes."""
    address: str | None = None
    """Ray cluster to join; None joins the one this job was submitted to, or starts a local one."""
    output: str = "runs/benchmark.json"
    """File for the figures."""

    @model_validator(mode="after")
    def _check(self) -> BenchmarkConfig:
        if self.positions % (2 * self.pairs):
            raise ValueError(
                f"positions ({self.positions}) must be a multiple of 2 * pairs ({2 * self.pairs}): "
                "chosen and rejected responses have equal lengths here"
            )
        return self
