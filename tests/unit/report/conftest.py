"""Inputs of a report as a small run gives them, the evaluation made by the real summary."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import EvaluationConfig, RunConfig
from pipeline.evaluation.scorers import SHIPPED
from pipeline.evaluation.summary import summarise
from pipeline.records import PairScores, ScoredSample
from pipeline.report.inputs import ReportInputs

REFERENCE_TEXT = (
    "the film is a dull and slow story of two brothers who never quite find their way home but it has a warm heart "
    "and some fine performances in a bad script that drags on without a single good joke or any real surprise"
)
POLICY_TEXT = (
    "the film is a warm and funny story of two brothers who find their way home and it has a great heart "
    "and lovely performances in a clever script that moves well although the end is a bad and awful mess"
)


def make_samples(prompts: int, seeds: int, rng: random.Random) -> list[ScoredSample]:
    """Texts of both models with real scores and made-up token numbers."""
    rows = []
    for model, words in (("reference", REFERENCE_TEXT.split()), ("policy", POLICY_TEXT.split())):
        for prompt in range(prompts):
            for seed in range(seeds):
                chosen = [rng.choice(words) for _ in range(rng.randint(12, 34))]
                tokens = [chosen[0].capitalize(), *[f" {word}" for word in chosen[1:]], "."]
                rows.append(make_sample(model, prompt, seed, tokens, rng))
    return rows


def make_sample(model: Any, prompt: int, seed: int, tokens: list[str], rng: random.Random) -> ScoredSample:
    text = "".join(tokens)
    risk = [round(rng.expovariate(1.0) ** 2 * 0.1, 4) for _ in tokens]
    head = f"Review of film number {prompt}:\n"
    return ScoredSample(
        model=model,
        prompt_id=f"prompt{prompt:03d}",
        seed=seed,
        prompt=head,
        text=text,
        finished=rng.random() < 0.8,
        scores={name: scorer.score([head], [text])[0] for name, scorer in SHIPPED.items()},
        tokens=tokens,
        log_ratio=[rng.gauss(0, 0.3) for _ in tokens],
        kl=[one / 2 for one in risk],
        risk=risk,
        max_risk=max(risk),
        max_risk_position=risk.index(max(risk)),
        prompt_set="c0ffee" * 10,
    )


def make_pairs(count: int, rng: random.Random) -> list[PairScores]:
    rows = []
    for row in range(count):
        logps = rng.uniform(-220, -120), rng.uniform(-220, -120)
        rows.append(
            PairScores(
                row_id=f"row{row}",
                group=f"film{row // 3}",
                chosen_logp=logps[0] + rng.gauss(-2, 2.5),
                chosen_ref_logp=logps[0],
                rejected_logp=logps[1] + rng.gauss(-4.5, 3),
                rejected_ref_logp=logps[1],
                chosen_risk={"kl": rng.uniform(0.5, 3), "cvar@0.5": rng.uniform(2, 5)},
                rejected_risk={"kl": rng.uniform(0.5, 3), "cvar@0.5": rng.uniform(2, 5)},
                chosen_bytes=rng.randint(90, 150),
                rejected_bytes=rng.randint(90, 150),
            )
        )
    return rows


def make_metrics(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.56 + 0.133 * 0.98**step + rng.gauss(0, 0.03)
        rows.append({"step": step, "split": "train", "loss": loss, "lr": 1e-3 * (1 - step / steps), "grad_norm": 1.0})
        if step % max(1, steps // 4) == 0:
            part = step / steps
            rows.append(
                {"step": step, "split": "validation", "loss": 0.69 - 0.11 * part, "reward_accuracy": 0.5 + 0.22 * part}
                | {
                    "chosen_kl": 2.0 * part,
                    "rejected_kl": 1.6 * part,
                    "chosen_risk": 4 * part,
                    "rejected_risk": 3 * part,
                }
            )
    return rows


def make_inputs(prompts: int = 12, seeds: int = 2, steps: int = 24, pairs: int = 30, **changes: Any) -> ReportInputs:
    rng = random.Random(5)
    samples = make_samples(prompts, seeds, rng)
    config = RunConfig.model_validate(
        {
            "data": {"path": "reviews.jsonl"},
            "model": {"path": "some/model"},
            "evaluation": {"num_prompts": prompts, "bootstrap_resamples": 200, "cost_per_incident": 25.0},
        }
    )
    evaluation_config: EvaluationConfig = config.evaluation
    evaluation = summarise(
        samples, make_pairs(pairs, rng), evaluation_config, {"method": "ra_dpo2", "risk_label": "cvar@0.5"}
    )
    fields: dict[str, Any] = {
        "recipe": "reviews",
        "config": config.model_dump(mode="json"),
        "evaluation": evaluation,
        "samples": samples,
        "metrics": make_metrics(steps, rng),
        "sft_metrics": [{"step": s, "loss": 7.5 * 0.97**s + 3.2, "tokens": 1000 * s} for s in range(1, 60)],
        "data_stats": {
            "rows_read": 13905,
            "pairs": {"train": 1500, "validation": 200, "test": 640},
            "groups": {"train": 326, "validation": 46, "test": 93},
            "characters": {"train": 301222, "validation": 40010, "test": 128000},
            "sft": {"rows": 9100, "characters": 1_203_441},
            "dropped": {"duplicate": 56, "empty text": 1},
        },
        "token_stats": {
            "prompts_cut": {"train": 3, "validation": 0, "test": 1},
            "dropped": {"overlong response": 17},
        },
        "stages": [
            {"name": "data", "key": "3f9a" * 16, "seconds": 2.13, "reused": False},
            {"name": "sft", "key": "77b1" * 16, "seconds": 95.4, "reused": True},
            {"name": "align", "key": "0c4e" * 16, "seconds": 214.0, "reused": False},
        ],
        "versions": {"torch": "2.13.0", "ray": "2.60.0", "machine": "2 CPU cores, 8 GiB"},
        "notes": ["The reference was built and fine-tuned inside the job."],
    }
    return ReportInputs(**(fields | changes))


@pytest.fixture(scope="session")
def build() -> Callable[..., ReportInputs]:
    """`make_inputs`: a whole report's inputs, with any field replaced."""
    return make_inputs


@pytest.fixture(scope="session")
def inputs() -> ReportInputs:
    return make_inputs()
