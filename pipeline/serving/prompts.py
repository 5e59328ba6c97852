"""From a request to rows: prompts as token ids, their limits, how they are sampled."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.config import DataConfig
from pipeline.data.checks import RowError
from pipeline.data.encode import Encoder
from pipeline.errors import ModelError
from pipeline.evaluation.sampling import row_seed
from pipeline.serving.decoding import Piece, Row, Settings
from pipeline.serving.engine import Loaded
from pipeline.serving.options import GuardOptions
from pipeline.serving.refusal import RefusedError
from pipeline.serving.request import ChatRequest, CompletionRequest

_CONVENTIONS = DataConfig(path="")
"""Of tokenising; its limits of length are not used here."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it."""

    text: str
    ids: tuple[int, ...]


def encode(request: CompletionRequest | ChatRequest, loaded: Loaded, options: GuardOptions) -> list[Prompt]:
    """The prompts of a request, tokenised as those that the model was aligned and judged by.

    Raises:
        RefusedError: 400, when one is too long, has ids that the model does not know, or there are too many.
    """
    count = 1 if isinstance(request, ChatRequest) else len(request.prompt)
    if count * request.n > options.max_choices:
        asked = f"{count} prompts with n={request.n} are {count * request.n} outputs"
        raise RefusedError(400, f"{asked}; a request may ask for {options.max_choices}", "too_many_outputs", "n")
    encoder = Encoder(_CONVENTIONS, loaded.tokenizer)
    if isinstance(request, ChatRequest):
        name, prompts = "messages", [_chat(request, loaded, encoder)]
    else:
        name, prompts = "prompt", [_prompt(one, loaded, encoder) for one in request.prompt]
    room = loaded.context_tokens - 1
    limit = room if options.max_prompt_tokens is None else min(options.max_prompt_tokens, room)
    longest = max(len(prompt.ids) for prompt in prompts)
    if longest > limit:
        message = f"{name}: has {longest} tokens, at most {limit} are taken"
        raise RefusedError(400, message, "context_length_exceeded", name)
    return prompts


def settings_of(
    request: CompletionRequest | ChatRequest, prompts: Sequence[Prompt], loaded: Loaded, options: GuardOptions
) -> Settings:
    """How the outputs of a request are sampled.

    Raises:
        RefusedError: 400, when they may become longer than the service or the model's context allows.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    room = min(options.max_tokens, loaded.context_tokens - longest)
    wanted = request.tokens_wanted(room)
    if wanted > room:
        message = (
            f"max_tokens: {wanted} tokens are asked for, at most {room} are given (the service allows "
            f"{options.max_tokens}, the model's context of {loaded.context_tokens} leaves "
            f"{loaded.context_tokens - longest} after the prompt)"
        )
        raise RefusedError(400, message, "context_length_exceeded", "max_tokens")
    return Settings(
        wanted, request.temperature, request.top_p, tuple(request.stop), request.top_logprobs, request.stream
    )


def rows_of(
    request: CompletionRequest | ChatRequest,
    prompts: Sequence[Prompt],
    settings: Settings,
    tell: Callable[[int, Piece | Exception], None],
) -> list[Row]:
    """``n`` rows for each prompt. With a seed they have the noise of the seeds from this one on, as evaluations do."""
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return [
        Row(
            prompt.ids,
            settings,
            row_seed(_prompt_id(prompt), seed + choice),
            partial(tell, number * request.n + choice),
        )
        for number, prompt in enumerate(prompts)
        for choice in range(request.n)
    ]


def _prompt_id(prompt: Prompt) -> str:
    """As in `pipeline.records.PromptTokens`."""
    return hashlib.sha256(",".join(map(str, prompt.ids)).encode("ascii")).hexdigest()[:16]


def _prompt(given: str | list[int], loaded: Loaded, encoder: Encoder) -> Prompt:
    if isinstance(given, str):
        return Prompt(given, tuple(encoder.prompts([given])[0]))
    if (unknown := max(given)) >= loaded.vocabulary:
        message = f"prompt: there is no token {unknown}, the model has {loaded.vocabulary}"
        raise RefusedError(400, message, "invalid_value", "prompt")
    return Prompt(str(loaded.tokenizer.decode(given)), tuple(given))


def _chat(request: ChatRequest, loaded: Loaded, encoder: Encoder) -> Prompt:
    messages = [{"role": one.role, "content": one.content} for one in request.messages]
    if not loaded.tokenizer.chat_template:
        message = "messages: the model has no chat template: use /v1/completions"
        raise RefusedError(400, message, "unsupported_model", "messages")
    try:
        text, _ = encoder.render(json.dumps(messages), [], chat=True)
    except (RowError, ModelError) as error:
        raise RefusedError(400, f"messages: {error}", "invalid_value", "messages") from error
    return Prompt(text, tuple(encoder.prompts([text])[0]))
