"""Answers in OpenAI's form. Every one names the version that it comes from. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.serving.decoding import Piece, Reason, TokenInfo


@dataclass(frozen=True)
class Head:
    """What all chunks of one answer share."""

    id: str
    created: int
    """Seconds since 1970."""
    line: str
    version: int
    fingerprint: str
    """Of the version's contents."""
    chat: bool

    @property
    def model(self) -> str:
        """``<line>/<version>``."""
        return f"{self.line}/{self.version}"

    def headers(self) -> dict[str, str]:
        """Of the HTTP answer."""
        return {"x-ra-dpo-line": self.line, "x-ra-dpo-version": str(self.version)}

    def document(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }


@dataclass
class Output:
    """One output as it comes together."""

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    reason: Reason | None = None

    def add(self, piece: Piece) -> None:
        """Its next piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.reason = piece.reason


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of a request: a prompt counts once, however many outputs it has."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def whole(head: Head, outputs: Sequence[Output], used: dict[str, int], logprobs: bool) -> dict[str, Any]:
    """An answer in one piece."""
    choices = []
    for index, output in enumerate(outputs):
        told = _logprobs(head.chat, output.tokens, 0) if logprobs else None
        content: dict[str, Any] = {"text": output.text}
        if head.chat:
            content = {"message": {"role": "assistant", "content": output.text, "refusal": None}}
        choices.append({"index": index, **content, "logprobs": told, "finish_reason": output.reason})
    return {**head.document("chat.completion" if head.chat else "text_completion", choices), "usage": used}


def opening(head: Head, index: int) -> bytes | None:
    """What a streamed output begins with, if anything."""
    if not head.chat:
        return None
    delta = {"role": "assistant", "content": ""}
    return _event(head, [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])


def chunk(head: Head, index: int, piece: Piece, offset: int, logprobs: bool) -> bytes:
    """A piece of a streamed output.

    Args:
        offset: characters of the output before it.
    """
    told = _logprobs(head.chat, piece.tokens, offset) if logprobs else None
    content: dict[str, Any] = {"text": piece.text}
    if head.chat:
        content = {"delta": {"content": piece.text} if piece.text or piece.reason is None else {}}
    return _event(head, [{"index": index, **content, "logprobs": told, "finish_reason": piece.reason}])


def closing(head: Head, used: dict[str, int] | None) -> bytes:
    """What a stream ends with."""
    last = b"" if used is None else _event(head, [], {"usage": used})
    return last + b"data: [DONE]\n\n"


def broken(error: dict[str, Any]) -> bytes:
    """A stream that cannot go on."""
    return b"data: " + json.dumps(error).encode() + b"\n\n"


def _event(head: Head, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
    kind = "chat.completion.chunk" if head.chat else "text_completion"
    return b"data: " + json.dumps({**head.document(kind, choices), **(more or {})}).encode() + b"\n\n"


def _logprobs(chat: bool, tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
    if chat:
        return {
            "content": [
                {
                    **_chat_token(one.text, one.logprob),
                    "top_logprobs": [_chat_token(text, value) for text, value in one.top],
                }
                for one in tokens
            ]
        }
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.text)
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [dict(one.top) for one in tokens],
        "text_offset": offsets,
    }


def _chat_token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
