"""From token ids to text, token by token: no half characters, and nothing behind a stop sequence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"
"""What a tokenizer makes of bytes that are no whole character (yet)."""


class Detokenizer:
    """The text that each token adds."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = 0
        """First token of those that are decoded together: what a token looks like depends on the one before."""
        self._told = 0
        """Tokens whose text was given."""

    def add(self, token: int) -> None:
        """One more token."""
        self._ids.append(token)

    def text(self, *, last: bool = False) -> str:
        """What the tokens since the last call add: nothing while a character is incomplete, unless it is the end."""
        before, after = self._decode(self._ids[self._from : self._told]), self._decode(self._ids[self._from :])
        if after.endswith(_INCOMPLETE) and not last:
            return ""
        self._from, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class Stops:
    """Holds back what may become a stop sequence, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of all that was pushed can be given away now."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            given, self._held = self._held[: min(found)], ""
            return given
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        given, self._held = self._held, ""
        return given


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop sequence."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
