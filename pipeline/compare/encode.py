"""The prompts of a comparison as one model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compare.prompts import Prompt
from pipeline.compare.sides import Model
from pipeline.config import RunConfig
from pipeline.data.encode import Encoder
from pipeline.errors import ConfigError
from pipeline.records import PromptTokens


@dataclass(frozen=True)
class Encoded:
    """``cut``: how many prompts lost their beginning to ``data.max_prompt_tokens``."""

    prompts: list[PromptTokens]
    cut: int


def encode(model: Model, name: str, prompts: Sequence[Prompt], run: RunConfig) -> Encoded:
    """Ids of every prompt for a model: those that came with the prompt where they are this tokenizer's, otherwise the
    text's, which keeps its end when it is longer than ``data.max_prompt_tokens``.

    Args:
        name: "A" or "B", for messages.

    Raises:
        ConfigError: when a prompt and its output can be longer than the model's context.
    """
    from pipeline.models.load import context_tokens, load_tokenizer

    encoder = Encoder(run.data, load_tokenizer(model.path))
    rows, cut = [], 0
    for prompt, whole in zip(prompts, encoder.prompts([one.text for one in prompts]), strict=True):
        ids = list(prompt.ids)
        if not _is_end_of(ids, whole) or len(ids) > run.data.max_prompt_tokens:
            ids = encoder.fit_prompt(whole)
        cut += len(ids) < len(whole)
        rows.append(PromptTokens(prompt.prompt_id, "", prompt.text, ids))
    longest, room = max(len(row.prompt_ids) for row in rows), context_tokens(model.path)
    if longest + run.evaluation.max_new_tokens > room:
        raise ConfigError(
            f"{name} ({model.label}) takes {room} tokens, but the longest prompt has {longest} and "
            f"evaluation.max_new_tokens is {run.evaluation.max_new_tokens}: lower that or data.max_prompt_tokens"
        )
    return Encoded(rows, cut)


def _is_end_of(ids: list[int], whole: list[int]) -> bool:
    """Whether ids are all of a tokenised prompt, or what is left of it once its beginning is cut (a BOS stays)."""
    if not ids or len(ids) > len(whole):
        return False
    return ids == whole[len(whole) - len(ids) :] or (
        ids[0] == whole[0] and ids[1:] == whole[len(whole) - len(ids) + 1 :]
    )
