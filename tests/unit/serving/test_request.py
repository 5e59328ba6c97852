"""Requests are read strictly: nothing that is asked for is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.serving.refusal import RefusedError
from pipeline.serving.request import ChatRequest, CompletionRequest, parse

HELLO = [{"role": "user", "content": "hello"}]


def completion(**more: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "a", **more}).encode())


def chat(**more: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"messages": HELLO, **more}).encode())


def test_what_leaves_the_answer_as_it_is_may_be_said() -> None:
    neutral: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "stop": None}
    assert completion(**neutral, echo=False, best_of=1, suffix=None, logprobs=None) == completion(
        **neutral, echo=False, best_of=1
    )
    assert chat(**neutral, response_format={"type": "text"}, tools=[], tool_choice="none").n == 1


def test_prompts_in_all_their_forms() -> None:
    for given, read in (("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])):
        assert completion(prompt=given).prompt == read
    assert completion(stop="x").stop == ["x"]


def test_lengths_as_with_openai() -> None:
    assert completion().tokens_wanted(100) == 16
    assert completion().tokens_wanted(5) == 5
    assert completion(max_tokens=70).tokens_wanted(5) == 70
    assert chat().tokens_wanted(100) == 100
    assert chat(max_completion_tokens=7).tokens_wanted(100) == 7


def test_contents_in_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(messages=[{"role": "user", "content": parts}]) == chat()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "b"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"top_k": 5}, "top_k"),
        ({"seed": 1 << 64}, "seed"),
    ],
)
def test_what_is_not_supported_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as refused:
        completion(**more)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content: must be text"),
        ({"tools": [{"type": "function"}]}, "tools: is not supported"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "differ"),
        ({"prompt": "a"}, "prompt: there is no such parameter"),
    ],
)
def test_chats_too(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        chat(**more)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'{"prompt": "\\ud800"}', b"[" * 100_000])
def test_what_is_no_object_is_no_request(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(CompletionRequest, body)
    assert refused.value.status == 400
