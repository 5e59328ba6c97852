"""Film reviews packed into pairs as long as those of dialogues: several reviews make a prompt or a response.

Only the lengths matter to the benchmark; fresh reviews make chosen responses and rotten ones rejected, so that both
are real text. Pure, but for the tokenizer that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.data.formats import content_id
from pipeline.data.reviews import Review
from pipeline.data.splits import hash_key
from pipeline.errors import DataError
from pipeline.records import PairRow

OPENING = "Reviews, and what others say of the same films:\n"


def joined(texts: Iterator[str], count: Callable[[str], int], target: int) -> str:
    """Texts from the iterator, joined by spaces, of about ``target`` tokens: the one that would pass the target by
    more than it now lacks, were it as long as those before it, is left to the next. At least one.

    Raises:
        StopIteration: when there are too few.
    """
    parts = [next(texts)]
    total = count(parts[0])
    while target - total > total / len(parts) / 2:
        parts.append(next(texts))
        total += count(parts[-1])
    return " ".join(parts)


def packed_reviews(
    reviews: Sequence[Review], num_pairs: int, count: Callable[[str], int], prompt_tokens: int, response_tokens: int
) -> list[PairRow]:
    """Pairs with prompts and responses of about so many tokens, every review in one of them at most.

    Reviews are taken in hash order, whatever the order of ``reviews``.

    Raises:
        DataError: when the reviews do not suffice.
    """
    shuffled = sorted(reviews, key=lambda one: hash_key(f"{one.film}\n{one.text}"))
    fresh = iter([one.text for one in shuffled if one.label == "fresh"])
    rotten = iter([one.text for one in shuffled if one.label == "rotten"])
    made: list[PairRow] = []
    while len(made) < num_pairs:
        # There are more fresh reviews, but not so many more that they could make all prompts.
        source = (fresh, fresh, rotten)[len(made) % 3]
        try:
            prompt = OPENING + joined(source, count, prompt_tokens - count(OPENING)) + "\n"
            chosen, rejected = joined(fresh, count, response_tokens), joined(rotten, count, response_tokens)
        except StopIteration:
            raise DataError(
                f"the reviews make only {len(made)} pairs of {prompt_tokens} + 2 x {response_tokens} tokens, but "
                f"{num_pairs} are asked for: lower the number of pairs or the lengths, or give a pair file with --pairs"
            ) from None
        row_id = content_id(prompt, chosen, rejected)
        made.append(PairRow(row_id, row_id, prompt, chosen, rejected, chat=False))
    return made
