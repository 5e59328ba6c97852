"""Token counts by hand (not a test: shared by tests)."""

from __future__ import annotations

from pipeline.plan import TokenCounts
from pipeline.records import SPLITS

BySplit = tuple[int, int, int]
"""Of training, validation and test."""


def counts_by_hand(
    pairs: BySplit = (33, 4, 7),
    prompt_tokens: BySplit = (100, 10, 20),
    response_tokens: BySplit = (300, 40, 70),
) -> TokenCounts:
    """Exact counts of a small data set with 21 texts and 5 prompts."""
    return TokenCounts(
        pairs=dict(zip(SPLITS, pairs, strict=True)),
        prompt_tokens=dict(zip(SPLITS, prompt_tokens, strict=True)),
        response_tokens=dict(zip(SPLITS, response_tokens, strict=True)),
        texts=21,
        text_tokens=210,
        prompts={"validation": 3, "test": 5},
        id_bytes={"train": 330, "validation": 40, "test": 70},
        exact=True,
        basis="by hand",
    )
