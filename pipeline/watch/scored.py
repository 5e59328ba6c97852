"""One output of production as the version and its reference see it."""

from __future__ import annotations

from dataclasses import dataclass

NO_TOKENS = "output without tokens"
NOT_SCORED = "not scored by the models"


@dataclass(frozen=True)
class Scored:
    """One output as the version and the reference see it (nats)."""

    measures: dict[str, float]
    """Sequential risk and KL, the scores, and the number of tokens."""
    tokens: list[str]
    risks: list[float]
    """Of every token of the output."""
    cut: bool
    """Whether prompt or output was longer than the model takes, and lost its beginning or its end."""
    anew: bool
    """Whether ids of another tokenizer came with it, so that its text was tokenised."""
