"""Text comes in pieces and is the same as the whole."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.text import Detokenizer, Stops


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8: the hardest case, three or four of them make one character."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def pieces_of(ids: Sequence[int]) -> list[str]:
    words = Detokenizer(Bytes())
    found = []
    for one in ids:
        words.add(one)
        found.append(words.text())
    return [*found, words.text(last=True)]


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_pieces_make_the_text_and_no_half_characters(text: str) -> None:
    found = pieces_of(text.encode())
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


def test_half_a_character_at_the_end_is_told() -> None:
    assert pieces_of("aé".encode()[:2]) == ["a", "", "\ufffd"]


@given(st.lists(st.text("ab", max_size=3)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_its_first_stop(parts: list[str], stops: list[str]) -> None:
    seen, given_away = "", ""
    search = Stops(stops)
    for part in parts:
        seen += part
        given_away += search.push(part)
        found = [at for stop in stops if (at := seen.find(stop)) >= 0]
        assert search.stopped == bool(found)
        if found:
            assert given_away == seen[: min(found)]
            return
    assert given_away + search.rest() == seen
