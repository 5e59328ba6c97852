"""A share of pairs with exact bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import beta


@dataclass(frozen=True)
class Accuracy:
    """Of ``pairs`` pairs, in how many log pi/pi_ref is larger on chosen than on rejected.

    The bounds are those of Clopper and Pearson (Biometrika 26, 1934): each is wrong with probability 1 - confidence at
    most, for independent pairs, however few they are.
    """

    right: int
    pairs: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.pairs or not self.pairs:
            raise ValueError(f"{self.right} of {self.pairs} pairs is no share")

    @property
    def value(self) -> float:
        return self.right / self.pairs

    def lower(self, confidence: float) -> float:
        """One-sided lower bound, 0 to 1."""
        if not self.right:
            return 0.0
        return float(beta.ppf(1 - confidence, self.right, self.pairs - self.right + 1))

    def upper(self, confidence: float) -> float:
        """One-sided upper bound, 0 to 1."""
        if self.right == self.pairs:
            return 1.0
        return float(beta.ppf(confidence, self.right + 1, self.pairs - self.right))

    def told(self, confidence: float) -> str:
        """In words, such as ``0.31 of 64 pairs (0.22 to 0.42)``: both bounds, each at ``confidence``."""
        return (
            f"{self.value:.2f} of {self.pairs:,} pairs ({self.lower(confidence):.2f} to {self.upper(confidence):.2f})"
        )


def least_drop(before: Accuracy, after: Accuracy, confidence: float) -> float:
    """By how much an accuracy has dropped at least, with ``confidence`` (negative: it may have risen).

    The two bounds share the error between them (Bonferroni), so that the statement is exact though not the sharpest.
    """
    each = 1 - (1 - confidence) / 2
    return before.lower(each) - after.upper(each)
