"""The model card of a version: what it is, what it was judged by, and what it must not be used for without more."""

from pipeline.report.card.content import CardInputs
from pipeline.report.card.render import card_html, card_markdown

__all__ = ["CardInputs", "card_html", "card_markdown"]
