"""Which tokens carried the risk in the worst outputs: the explanation of a figure, token by token. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.records import ScoredSample

OUTPUTS = 10
TOKENS = 5
COMMON = 15


@dataclass(frozen=True)
class RiskyToken:
    """One token of an output: its risk (the trained measure, nats), its share of the output's risk, and
    log pi - log pi_ref of the token itself."""

    position: int
    text: str
    risk: float
    share: float
    log_ratio: float


@dataclass(frozen=True)
class RiskyOutput:
    """One of the worst outputs with the tokens that carried most of its risk, largest first."""

    prompt_id: str
    seed: int
    prompt: str
    text: str
    score: float
    risk: float
    """Sum over its tokens, nats."""
    tokens: tuple[RiskyToken, ...]


@dataclass(frozen=True)
class CommonToken:
    """A token over all the worst outputs: how often it stands there, its risk in all, and its mean risk there and in
    all other outputs (None where it does not occur in these)."""

    text: str
    count: int
    risk: float
    share: float
    mean: float
    mean_elsewhere: float | None


@dataclass(frozen=True)
class Explanation:
    """What stands behind the tail of a policy's scores."""

    outputs: tuple[RiskyOutput, ...]
    """The worst ones, worst first."""
    tokens: tuple[CommonToken, ...]
    """Of the worst share of outputs, by their risk in all, largest first."""
    num_worst: int
    """Outputs in the worst share."""
    risk_worst: float
    """Mean risk of an output there, nats."""
    risk_others: float | None
    """Mean risk of all other outputs."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def explain(samples: Sequence[ScoredSample], scorer: str, tail_fraction: float) -> Explanation:
    """The tokens behind the policy's worst outputs.

    Args:
        samples: of which those of the policy count; not empty.
        scorer: the primary score; lower is worse.
        tail_fraction: share of outputs that are the worst ones (at least one).
    """
    ordered = sorted(
        (one for one in samples if one.model == "policy"), key=lambda one: (one.scores[scorer], one.prompt_id, one.seed)
    )
    count = max(1, round(tail_fraction * len(ordered)))
    worst, others = ordered[:count], ordered[count:]
    return Explanation(
        tuple(_output(one, scorer) for one in worst[:OUTPUTS]),
        _common(worst, others),
        count,
        _mean([sum(one.risk) for one in worst]) or 0.0,
        _mean([sum(one.risk) for one in others]),
    )


def _output(sample: ScoredSample, scorer: str) -> RiskyOutput:
    total = sum(sample.risk)
    positions = sorted(range(len(sample.risk)), key=lambda position: (-sample.risk[position], position))[:TOKENS]
    return RiskyOutput(
        sample.prompt_id,
        sample.seed,
        sample.prompt,
        sample.text,
        sample.scores[scorer],
        total,
        tuple(
            RiskyToken(
                position,
                sample.tokens[position],
                sample.risk[position],
                sample.risk[position] / total if total > 0 else 0.0,
                sample.log_ratio[position],
            )
            for position in positions
        ),
    )


def _common(worst: Sequence[ScoredSample], others: Sequence[ScoredSample]) -> tuple[CommonToken, ...]:
    here, elsewhere = _by_token(worst), _by_token(others)
    total = sum(sum(risks) for risks in here.values())
    ranked = sorted(here.items(), key=lambda item: (-sum(item[1]), item[0]))[:COMMON]
    return tuple(
        CommonToken(
            text,
            len(risks),
            sum(risks),
            sum(risks) / total if total > 0 else 0.0,
            sum(risks) / len(risks),
            _mean(elsewhere.get(text, [])),
        )
        for text, risks in ranked
    )


def _by_token(samples: Sequence[ScoredSample]) -> dict[str, list[float]]:
    risks: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for text, risk in zip(sample.tokens, sample.risk, strict=True):
            risks[text].append(risk)
    return risks


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
