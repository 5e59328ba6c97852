"""In which language pages speak: the English sentences of the code, and catalogues that hold them in another language.

A message is an English literal given to a translate function, ``tr("{count} prompts").format(count=3)``; its
translation stands in ``locale/<language>.po`` (GNU gettext) and is looked up when the page is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from babel.messages.pofile import read_po

from pipeline.release_config import Language

Translate = Callable[[str], str]

CATALOGUES = Path(__file__).parent / "locale"
_CONTEXT = "\x04"
"""Between context and message, as in gettext's own compiled catalogues; never shown."""


def sense(context: str, text: str) -> str:
    """A message that English says in one word and other languages in several, told apart by where it stands."""
    return f"{context}{_CONTEXT}{text}"


def english(text: str) -> str:
    """The translation into English: the message itself."""
    return text.rpartition(_CONTEXT)[2]


@cache
def translator(language: Language) -> Translate:
    """The translate function of a language; a message that its catalogue lacks stays English."""
    if language == "en":
        return english
    with (CATALOGUES / f"{language}.po").open("rb") as file:
        catalogue = read_po(file, locale=language)
    known = {
        sense(one.context, str(one.id)) if one.context else str(one.id): str(one.string)
        for one in catalogue
        if one.id and one.string and not one.fuzzy
    }

    def translate(text: str) -> str:
        return known.get(text) or english(text)

    return translate
