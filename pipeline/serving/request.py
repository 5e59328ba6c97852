"""Requests of OpenAI's completions, read strictly. Pure.

What a request asks for is done or refused: a parameter that nobody knows, or one that is not supported with a value
that would change the answer, is an error 400 that names it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.serving.refusal import RefusedError

MAX_STOPS = 4
_DEFAULT_TOKENS = 16
"""Of a completion, as with OpenAI."""


def _neutral(*values: Any) -> Any:
    """A parameter that is not supported: only values that leave the answer as it is are taken."""

    def check(value: Any) -> Any:
        if value is not None and not any(value == one and type(value) in (type(one), int, float) for one in values):
            raise ValueError(f"is not supported (only {' or '.join(json.dumps(one) for one in values)})")
        return value

    return Annotated[Any, AfterValidator(check)]


def _prompts(value: Any) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):
            return value
        if _ids(value):
            return [value]
        if all(isinstance(one, list) and one and _ids(one) for one in value):
            return value
    raise ValueError("must be text, a list of texts, a list of token ids, or a list of such lists, and not empty")


def _ids(value: list[Any]) -> bool:
    return all(type(one) is int and 0 <= one < 1 << 31 for one in value)


def _stops(value: Any) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or any(not isinstance(s, str) or not s for s in stops):
        raise ValueError(f"must be a text or a list of up to {MAX_STOPS} texts, none of them empty")
    return stops


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts: list[Any] = value if isinstance(value, list) and value else [None]
    if all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        return "".join(part["text"] for part in parts)
    raise ValueError("must be text, or a list of parts of type 'text'")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Strict):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: _neutral(False) = None  # type: ignore[valid-type]


class _Common(_Strict):
    """What completions and chats share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    """0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Goes to the same side of a canary with every request."""

    presence_penalty: _neutral(0) = None  # type: ignore[valid-type]
    frequency_penalty: _neutral(0) = None  # type: ignore[valid-type]
    logit_bias: _neutral({}) = None  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        """null is the same as nothing."""
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


class CompletionRequest(_Common):
    """``/v1/completions``."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: _neutral(False) = None  # type: ignore[valid-type]
    best_of: _neutral(1) = None  # type: ignore[valid-type]
    suffix: _neutral("") = None  # type: ignore[valid-type]

    def tokens_wanted(self, room: int) -> int:
        """Longest output, where ``room`` tokens are left by the prompt and the service's limit."""
        return min(_DEFAULT_TOKENS, room) if self.max_tokens is None else self.max_tokens

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives of each token to tell beside its own log-probability; None for nothing."""
        return self.logprobs


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class ChatRequest(_Common):
    """``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs_: int = Field(0, ge=0, le=20, alias="top_logprobs")
    response_format: _neutral({"type": "text"}) = None  # type: ignore[valid-type]
    tools: _neutral([]) = None  # type: ignore[valid-type]
    tool_choice: _neutral("none") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs_ and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def tokens_wanted(self, room: int) -> int:
        """As that of a completion, but without a wish the answer may take all the room."""
        return self.max_completion_tokens or self.max_tokens or room

    @property
    def top_logprobs(self) -> int | None:
        """As that of a completion."""
        return self.top_logprobs_ if self.logprobs else None


Request = TypeVar("Request", bound=_Common)


def parse(kind: type[Request], body: bytes) -> Request:
    """A request from its body.

    Raises:
        RefusedError: 400, naming the parameter.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise RefusedError(400, f"the body is not JSON: {first['msg'].partition(': ')[2]}", "invalid_json")
    param = ".".join(str(part) for part in first["loc"]) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        raise RefusedError(400, f"{param}: there is no such parameter here", "unknown_parameter", param)
    if first["type"] == "missing":
        raise RefusedError(400, f"{param} is missing", "missing_required_parameter", param)
    reason = reason[:1].lower() + reason[1:]
    raise RefusedError(400, f"{param}: {reason}" if param else reason, "invalid_value", param)
