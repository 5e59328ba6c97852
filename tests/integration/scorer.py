"""A scorer of a user's own (not a test: loaded by the jobs that the tests of this folder run)."""

from __future__ import annotations


def letters(prompts: list[str], texts: list[str]) -> list[float]:
    """Number of letters."""
    return [float(sum(one.isalpha() for one in text)) for text in texts]
