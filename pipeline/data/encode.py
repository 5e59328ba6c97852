"""Text to token ids under the pipeline's conventions: chat rendering, BOS, EOS, lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import DataConfig
from pipeline.data.checks import EMPTY_RESPONSE, RowError
from pipeline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OVERLONG = "longer than the context"
EOS_INSIDE = "end-of-sequence token inside"
TEMPLATE_REFUSES = "refused by the chat template"

_TEXTS_PER_CALL = 4096
"""Bounds the tokenizer's own memory; large enough that the call's overhead does not count."""


def check_lengths(config: DataConfig, context_tokens: int) -> None:
    """Raise ConfigError when prompt and response together can be longer than the model's context."""
    needed = config.max_prompt_tokens + config.max_response_tokens
    if needed > context_tokens:
        raise ConfigError(
            f"data.max_prompt_tokens ({config.max_prompt_tokens}) + data.max_response_tokens "
            f"({config.max_response_tokens}) is {needed}, but the model takes {context_tokens}: lower one of them"
        )


def check_sampling(config: DataConfig, max_new_tokens: int, context_tokens: int) -> None:
    """Raise ConfigError when a prompt and the answer sampled for it can be longer than the model's context."""
    needed = config.max_prompt_tokens + max_new_tokens
    if needed > context_tokens:
        raise ConfigError(
            f"data.max_prompt_tokens ({config.max_prompt_tokens}) + evaluation.max_new_tokens ({max_new_tokens}) is "
            f"{needed}, but the model takes {context_tokens}: lower one of them"
        )


class Encoder:
    """A tokenizer with the pipeline's conventions around it.

    Raises ModelError when the tokenizer has no EOS token, and on the first chat row when it has no template.
    """

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no end-of-sequence token, so no response could end: "
                "set eos_token in its tokenizer_config.json, or use another model"
            )
        self._config = config
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._bos: int | None = tokenizer.bos_token_id
        # Some tokenizers name a BOS that they never add (GPT-2): what they do to a text is what counts.
        self._adds_bos = self._bos is not None and tokenizer("a")["input_ids"][:1] == [self._bos]

    def render(self, prompt: str, answers: Sequence[str], chat: bool) -> tuple[str, list[str]]:
        """Prompt and answers as the plain texts to tokenise; chat rows go through the tokenizer's template.

        The prompt of a chat row ends with the template's opening of an answer; an answer is what the template
        adds to that for the whole conversation, without a final EOS (`fit` adds it). Raises ModelError without
        a template and RowError when the template refuses the messages.
        """
        if not chat:
            return prompt, list(answers)
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"the data has chat messages but the tokenizer of '{self._tokenizer.name_or_path}' has no chat "
                "template: use an instruct model, set chat_template in its tokenizer_config.json, or give plain text"
            )
        messages = json.loads(prompt)
        opening = self._apply_template(messages, add_generation_prompt=True)
        texts = []
        for answer in answers:
            whole = self._apply_template([*messages, {"role": "assistant", "content": answer}])
            # Templates that rewrite earlier turns do not continue their own prompt; the bare answer then stands.
            text = whole.removeprefix(opening).rstrip() if whole.startswith(opening) else answer
            texts.append(text.removesuffix(str(self._tokenizer.eos_token)))
        return opening, texts

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole prompts: BOS first where the tokenizer adds one (once, a template may have it already),
        and never empty, because the first response token needs a position that predicts it."""
        start = self._eos if self._bos is None else self._bos
        encoded = []
        for ids in self._encode(texts):
            if self._adds_bos and ids[:1] != [self._bos]:
                ids = [start, *ids]
            encoded.append(ids or [start])
        return encoded

    @property
    def eos(self) -> int:
        """Id of the end-of-sequence token."""
        return self._eos

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole responses, without EOS at their end."""
        encoded = self._encode(texts)
        for ids in encoded:
            while ids and ids[-1] == self._eos:
                ids.pop()
        return encoded

    def fit_prompt(self, ids: list[int]) -> list[int]:
        """The end of a prompt, at most ``data.max_prompt_tokens`` ids; a BOS at the start stays (and counts)."""
        limit = self._config.max_prompt_tokens
        if len(ids) <= limit:
            return ids
        if self._adds_bos and limit > 1:
            return ids[:1] + ids[len(ids) - limit + 1 :]
        return ids[len(ids) - limit :]

    def fit(self, ids: list[int], name: str) -> list[int]:
        """A response with its EOS, or cut to ``data.max_response_tokens`` and then without.

        Raises RowError when it is empty, holds an EOS before its end (the model would have stopped there), or is
        too long while data.overlong is 'drop'.
        """
        if not ids:
            raise RowError(EMPTY_RESPONSE, f"{name} has no tokens")
        limit = self._config.max_response_tokens
        if len(ids) < limit:
            fitted = [*ids, self._eos]
        elif self._config.overlong == "truncate":
            fitted = ids[:limit]
        else:
            raise RowError(OVERLONG, f"{name} has {len(ids) + 1} tokens, data.max_response_tokens is {limit}")
        if self._eos in fitted[:-1]:
            raise RowError(EOS_INSIDE, f"{name} holds the text of {self._tokenizer.eos_token!r} before its end")
        return fitted

    def _apply_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, tokenize=False
                )
            )
        except TemplateError as error:
            raise RowError(TEMPLATE_REFUSES, str(error)) from error

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            batch = list(texts[start : start + _TEXTS_PER_CALL])
            ids += self._tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
