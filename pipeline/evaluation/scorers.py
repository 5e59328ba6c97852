"""Scorers: what a sampled text is judged by, shipped or the user's own.

A scorer maps prompts and texts to one number a text. The shipped ones need no network and no accelerator;
your own is named ``module:function``, is called as ``function(prompts, texts)`` and returns one finite number
a text. Give the function an attribute ``larger_is_better`` (True, False, or None for neither) when larger is
not better; without it larger is taken to be better. An attribute ``score_range`` (the least and the largest value)
lets the gate bound what has not been seen.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import EvaluationConfig
from pipeline.errors import EvaluationError
from pipeline.plugins import load_function

ScoreFunction = Callable[[list[str], list[str]], Sequence[float]]

REPETITION_WORDS = 4
"""Length, in words, of the n-grams that `repetition` counts."""


@dataclass(frozen=True)
class Scorer:
    """A named judge of texts. ``larger_is_better`` is None when neither direction is better (a length); ``range`` is
    the least and the largest value that a text can get, None when that is not known."""

    name: str
    function: ScoreFunction
    larger_is_better: bool | None
    description: str
    range: tuple[float, float] | None = None

    def score(self, prompts: list[str], texts: list[str]) -> list[float]:
        """One finite float a text, in the order of ``texts``.

        Raises `EvaluationError` naming the scorer when the function fails, returns another number of
        values, or returns a value that is not a finite number.
        """
        if len(prompts) != len(texts):
            raise EvaluationError(f"scorer {self.name!r}: {len(prompts)} prompts but {len(texts)} texts to score")
        if not texts:
            return []
        try:
            values = list(self.function(list(prompts), list(texts)))
        except Exception as error:
            raise EvaluationError(
                f"scorer {self.name!r} failed on {len(texts)} texts with {type(error).__name__}: {error}. "
                "It must accept any text, the empty one included"
            ) from error
        if len(values) != len(texts):
            raise EvaluationError(
                f"scorer {self.name!r} returned {len(values)} values for {len(texts)} texts: "
                "return exactly one number a text, in the same order"
            )
        return [self._number(value, index) for index, value in enumerate(values)]

    def _number(self, value: object, index: int) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise EvaluationError(
                f"scorer {self.name!r} returned {value!r} for text {index}, which is not a finite number: "
                "give such texts a number too (for instance the worst one)"
            )
        return number


def vader(prompts: list[str], texts: list[str]) -> list[float]:
    """VADER's compound sentiment of the text, -1 (negative) to 1 (positive); 0 for an empty text."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]


def profanity(prompts: list[str], texts: list[str]) -> list[float]:
    """Probability that the text is profane, 0 to 1 (alt-profanity-check's linear model)."""
    from profanity_check import predict_prob

    return [float(value) for value in predict_prob(texts)]


def repetition(prompts: list[str], texts: list[str]) -> list[float]:
    """Share of 4-grams of words that repeat an earlier one of the same text, 0 to 1.

    Words are the lower-cased parts between white space. With N 4-grams of which D are distinct the share is
    (N - D) / N; a text of fewer than four words has no 4-gram and scores 0. Example: "a b c d a b c d" has
    the five 4-grams abcd bcda cdab dabc abcd, so 1/5.
    """
    return [_repeated_share(text.lower().split()) for text in texts]


def length(prompts: list[str], texts: list[str]) -> list[float]:
    """Number of characters (Unicode code points) of the text."""
    return [float(len(text)) for text in texts]


def _repeated_share(words: list[str]) -> float:
    total = len(words) - REPETITION_WORDS + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(words[start : start + REPETITION_WORDS]) for start in range(total)})
    return (total - distinct) / total


SHIPPED: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("vader", vader, True, "VADER sentiment of the text, -1 (negative) to 1 (positive)", (-1.0, 1.0)),
        Scorer("profanity", profanity, False, "probability that the text is profane, 0 to 1", (0.0, 1.0)),
        Scorer(
            "repetition", repetition, False, "share of repeated four-word sequences in the text, 0 to 1", (0.0, 1.0)
        ),
        Scorer("length", length, None, "length of the text in characters"),
    )
}
"""The scorers that need no code of the user's, by name."""


def load_scorers(names: Iterable[str]) -> dict[str, Scorer]:
    """The scorers of these names, in this order.

    A name is one of `SHIPPED` or ``module:function``; the working directory is importable. Raises
    `EvaluationError` for an unknown name (with the nearest known one), a module that cannot be imported,
    a function that it does not hold and a ``score_range`` that is none. Shipped scorers import their libraries
    at the first score.
    """
    return {name: SHIPPED[name] if name in SHIPPED else _load_own(name) for name in names}


def check_scorers(config: EvaluationConfig) -> dict[str, Scorer]:
    """`load_scorers` for a run, refusing a primary scorer of which larger is not better."""
    scorers = load_scorers(config.scorers)
    primary = scorers[config.primary_scorer]
    if primary.larger_is_better is not True:
        usable = [name for name, scorer in scorers.items() if scorer.larger_is_better]
        raise EvaluationError(
            f"evaluation.primary_scorer {primary.name!r} cannot decide the verdict: larger is not better there "
            f"({primary.description}). Set it to a scorer of which larger is better"
            + (f", for instance {usable[0]!r}" if usable else ", for instance 'vader', and add that to the scorers")
        )
    return scorers


def _load_own(name: str) -> Scorer:
    if ":" not in name:
        near = difflib.get_close_matches(name.lower(), SHIPPED, n=1)
        raise EvaluationError(
            f"evaluation.scorers: unknown scorer {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
            f"Shipped: {', '.join(SHIPPED)}; your own is named 'module:function'"
        )
    function = load_function("scorer", name, EvaluationError)
    summary = (function.__doc__ or "").strip().splitlines()
    return Scorer(
        name,
        function,
        getattr(function, "larger_is_better", True),
        summary[0] if summary else name,
        _own_range(name, getattr(function, "score_range", None)),
    )


def _own_range(name: str, given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        low, high = (float(end) for end in given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise EvaluationError(
            f"scorer {name!r}: its attribute score_range is {given!r}: give two finite numbers, the least value first, "
            "or leave it out"
        )
    return low, high
