"""The guard over HTTP, on a real registry with real models: who answers, what is refused, what is logged."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import ConfigError, RegistryError
from pipeline.models.contents import tokenizer_contents
from pipeline.release.line import Line
from pipeline.serving.guard import Guard
from pipeline.serving.options import GuardOptions
from pipeline.traffic import parse
from tests.served import ALIAS, LINE, OpenGuard, begin_line

ASKED = {"prompt": "A joy", "max_tokens": 8, "seed": 3}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def ask(client: httpx.AsyncClient, *, code: int = 200, **more: Any) -> Any:
    answer = await client.post("/v1/completions", json={**ASKED, **more})
    assert answer.status_code == code, answer.text
    return answer.json()


async def error_of(client: httpx.AsyncClient, code: int, **more: Any) -> dict[str, Any]:
    error: dict[str, Any] = (await ask(client, code=code, **more))["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return error


def test_an_answer_names_its_version(open_guard: OpenGuard, line: Line) -> None:
    async def test() -> None:
        async with open_guard() as client:
            answer = await client.post("/v1/completions", json=ASKED)
            body = answer.json()
            assert body["model"] == f"{LINE}/2"
            assert body["system_fingerprint"] == line.versions.manifest(2).id
            assert (answer.headers["x-ra-dpo-version"], answer.headers["x-ra-dpo-line"]) == ("2", LINE)
            assert body["usage"]["completion_tokens"] <= 8
            for model, version in ((None, 2), (ALIAS, 2), ("reference", 0), ("1", 1), (f"{LINE}/1", 1)):
                assert (await ask(client, model=model))["model"] == f"{LINE}/{version}"
            listed = (await client.get("/v1/models")).json()["data"]
            assert [one["id"] for one in listed] == [ALIAS, "reference", "0", "1", "2"]
            assert (await client.get("/healthz")).json()["version"] == 2

    run(test())


def test_a_move_holds_from_the_next_request_on(open_guard: OpenGuard, line: Line) -> None:
    async def test() -> None:
        async with open_guard() as client:
            texts = {2: (await ask(client))["choices"][0]["text"]}
            for target in (1, 0):
                line.roll_back(ALIAS, str(target), why="a test")
                body = await ask(client)
                assert body["model"] == f"{LINE}/{target}"
                texts[target] = body["choices"][0]["text"]
            line.promote(ALIAS, 2, expected=0, why="a test")
            assert (await ask(client))["choices"][0]["text"] == texts[2]
            assert len(set(texts.values())) == 3, "each version gives its own answer"

    run(test())


def test_a_request_under_way_ends_with_its_version(open_guard: OpenGuard, line: Line) -> None:
    async def test() -> None:
        async with open_guard(max_loaded=1, preload=False) as client:
            whole = await ask(client, max_tokens=40)
            async with client.stream(
                "POST", "/v1/completions", json={**ASKED, "max_tokens": 40, "stream": True}
            ) as got:
                line.roll_back(ALIAS, why="a test")
                assert (await ask(client))["model"] == f"{LINE}/1", "which takes the place of version 2"
                events = [json.loads(text[6:]) async for text in got.aiter_lines() if text.startswith("data: {")]
            assert {one["model"] for one in events} == {f"{LINE}/2"}
            assert "".join(one["choices"][0]["text"] for one in events) == whole["choices"][0]["text"]

    run(test())


def test_a_stream_says_the_same_as_the_whole(open_guard: OpenGuard) -> None:
    async def test() -> None:
        async with open_guard() as client:
            more = {"n": 2, "logprobs": 2, "max_tokens": 30, "temperature": 0.8, "top_p": 0.9, "stop": ["o"]}
            whole = await ask(client, **more)
            streamed = await client.post(
                "/v1/completions", json={**ASKED, **more, "stream": True, "stream_options": {"include_usage": True}}
            )
            assert streamed.headers["content-type"].startswith("text/event-stream")
            lines = [text[6:] for text in streamed.text.split("\n\n") if text]
            assert lines[-1] == "[DONE]"
            events = [json.loads(text) for text in lines[:-1]]
            assert events[-1]["usage"] == whole["usage"]
            for choice in whole["choices"]:
                mine = [one["choices"][0] for one in events[:-1] if one["choices"][0]["index"] == choice["index"]]
                assert "".join(one["text"] for one in mine) == choice["text"]
                assert "o" not in choice["text"]
                assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
                values = [value for one in mine for value in one["logprobs"]["token_logprobs"]]
                assert values == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
                assert len(choice["logprobs"]["top_logprobs"][0]) <= 2

    run(test())


@pytest.mark.parametrize(
    ("more", "code", "param", "message"),
    [
        ({"model": "gpt-4"}, 404, "model", "the model 'gpt-4' is not served here; there are production, reference"),
        ({"model": "7"}, 404, "model", "the model '7' is not served here"),
        ({"prompt": "joy " * 70}, 400, "prompt", "tokens, at most 63 are taken"),
        ({"prompt": [5, 285]}, 400, "prompt", "there is no token 285, the model has 285"),
        ({"max_tokens": 65}, 400, "max_tokens", "65 tokens are asked for, at most"),
        ({"n": 17}, 400, "n", "1 prompts with n=17 are 17 outputs; a request may ask for 16"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "is not supported (only 0)"),
        ({"mu": 1}, 400, "mu", "there is no such parameter"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    open_guard: OpenGuard, more: dict[str, Any], code: int, param: str, message: str
) -> None:
    async def test() -> None:
        async with open_guard() as client:
            error = await error_of(client, code, **more)
            assert error["param"] == param
            assert message in error["message"]

    run(test())


def test_bodies_and_paths_that_are_none(open_guard: OpenGuard) -> None:
    async def test() -> None:
        async with open_guard(max_body_bytes=2000) as client:
            broken = await client.post("/v1/completions", content=b'{"prompt": ')
            assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
            assert (await client.get("/v1/completion")).json()["error"]["code"] == "unknown_url"
            assert (await client.get("/v1/completions")).status_code == 405
            await error_of(client, 413, prompt="x" * 2000)

            async def endless() -> Any:
                while True:
                    yield b"x" * 500

            assert (await client.post("/v1/completions", content=endless())).status_code == 413
            chat = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
            assert "has no chat template" in chat.json()["error"]["message"]

    run(test())


def test_a_token_is_asked_for(open_guard: OpenGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with open_guard(token_env="GUARD_TOKEN") as client:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
                for path in ("/v1/models", "/v1/completions"):
                    refused = await client.request("GET" if "models" in path else "POST", path, headers=headers)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
                    assert refused.headers["www-authenticate"] == "Bearer"
            right = {"authorization": "Bearer s3crét".encode()}
            assert (await client.get("/v1/models", headers=right)).status_code == 200
            assert (await client.get("/healthz")).status_code == 200

    with pytest.raises(ConfigError, match="GUARD_TOKEN is not set"):
        run(test())
    monkeypatch.setenv("GUARD_TOKEN", "s3crét")
    run(test())


def test_a_flood_is_sent_away_and_the_rest_answered(open_guard: OpenGuard) -> None:
    async def test() -> None:
        async with open_guard(max_queued=4, max_rows=2, max_batches=1) as client:
            many = [client.post("/v1/completions", json={**ASKED, "max_tokens": 40}) for _ in range(40)]
            answers = await asyncio.gather(*many)
            codes = [answer.status_code for answer in answers]
            assert set(codes) == {200, 429}
            assert codes.count(200) >= 4
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            await ask(client)

    run(test())


@pytest.mark.parametrize("fallback", ["none", "reference"])
def test_a_damaged_version_does_not_answer(open_guard: OpenGuard, line: Line, fallback: str) -> None:
    manifest = line.versions.manifest(1)
    weights = Path(line.versions.directory(manifest).root) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")

    async def test() -> None:
        async with open_guard(fallback=fallback, preload=False, max_loaded=2) as client:
            line.roll_back(ALIAS, why="a test")
            if fallback == "reference":
                assert (await ask(client))["model"] == f"{LINE}/0", "and it says so"
                assert (await client.get("/healthz")).status_code == 200
            else:
                error = await error_of(client, 503)
                assert error["code"] == "version_unavailable"
                assert "version 1" in error["message"]
                assert "model.safetensors differs from its digest" in error["message"]
                assert (await client.get("/healthz")).status_code == 503
            line.promote(ALIAS, 2, expected=1, why="a test")
            assert (await ask(client))["model"] == f"{LINE}/2"

    run(test())


def test_a_registry_out_of_reach(open_guard: OpenGuard, storage: Path, line: Line) -> None:
    registry, elsewhere = storage / "registry", storage / "elsewhere"

    async def test() -> None:
        async with open_guard(stale_s=0.5) as client:
            await ask(client)
            registry.rename(elsewhere)
            assert (await ask(client))["model"] == f"{LINE}/2", "for a moment the last known state holds"
            await asyncio.sleep(0.6)
            answer = await client.post("/v1/completions", json=ASKED)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "registry_unreachable"
            assert (await client.get("/healthz")).status_code == 503
            elsewhere.rename(registry)
            line.roll_back(ALIAS, why="a test")
            assert (await ask(client))["model"] == f"{LINE}/1"

    run(test())


def test_a_canary_takes_its_share(open_guard: OpenGuard, line: Line) -> None:
    line.decide(ALIAS, 1, None, seen=0, why="a test", details={"gate": {}})  # the candidate

    async def test() -> None:
        async with open_guard(canary="candidate=0.5") as client:
            first = [(await ask(client, user=f"user {n}", max_tokens=1))["model"] for n in range(40)]
            again = [(await ask(client, user=f"user {n}", max_tokens=1))["model"] for n in range(40)]
            assert first == again, "a user stays on one side"
            assert 8 <= first.count(f"{LINE}/1") <= 32
            assert (await ask(client, model="candidate"))["model"] == f"{LINE}/1"

    run(test())


def test_what_is_answered_is_logged(open_guard: OpenGuard, tmp_path: Path, storage: Path, line: Line) -> None:
    async def test() -> None:
        async with open_guard(log=str(tmp_path / "log"), log_share=1) as client:
            body = await ask(client, n=2)
            await client.post("/v1/completions", json={**ASKED, "stream": True, "prompt": [40, 41]})
            texts.extend(choice["text"] for choice in body["choices"])

    texts: list[str] = []
    run(test())
    (path,) = (tmp_path / "log").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    rows = [parse(text) for text in path.read_bytes().splitlines(keepends=True)]
    assert [row.output for row in rows[:2]] == texts
    assert {(row.line, row.version, row.prompt) for row in rows[:2]} == {(LINE, 2, "A joy")}
    model = Path(line.versions.directory(line.versions.manifest(2)).root)
    assert rows[0].tokenizer == tokenizer_contents(model)
    assert rows[2].prompt_ids == (40, 41)
    assert all(row.output_ids and row.finished is not None and row.time for row in rows)


def test_a_chat_goes_through_the_template(
    open_guard: OpenGuard, storage: Path, version_models: list[Path], line: Line, tmp_path: Path
) -> None:
    model = shutil.copytree(version_models[1], tmp_path / "chat")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    version = line.register(model, {}, why="a test").version
    line.promote(ALIAS, version, expected=2, why="a test")

    async def test() -> None:
        async with open_guard() as client:
            chat = {"messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 8}
            body = (await client.post("/v1/chat/completions", json={**chat, "logprobs": True})).json()
            same = await ask(client, prompt="user: hi\n>")
            assert body["object"] == "chat.completion"
            assert body["choices"][0]["message"]["content"] == same["choices"][0]["text"]
            assert body["choices"][0]["logprobs"]["content"][0]["logprob"] <= 0
            streamed = await client.post("/v1/chat/completions", json={**chat, "stream": True})
            deltas = [json.loads(text[6:])["choices"][0]["delta"] for text in streamed.text.split("\n\n")[:-2]]
            assert deltas[0] == {"role": "assistant", "content": ""}
            assert "".join(one.get("content", "") for one in deltas) == same["choices"][0]["text"]

    run(test())


def test_who_leaves_is_not_worked_for(open_guard: OpenGuard) -> None:
    async def test() -> None:
        async with open_guard(max_queued=1, max_rows=1, max_batches=1) as client:
            for _ in range(6):
                request = asyncio.create_task(ask(client, max_tokens=60))
                await asyncio.sleep(0.005)
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
            await asyncio.sleep(0.05)
            await ask(client)

    run(test())


def test_a_registry_on_an_object_store(
    s3_url: str, version_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "scratch"))
    line = begin_line(f"{s3_url}/registry", version_models)

    async def test() -> None:
        guard = await Guard.open(GuardOptions(storage=s3_url))
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(guard.app()), base_url="http://guard") as client:
                assert (await ask(client))["model"] == f"{LINE}/2"
                await asyncio.to_thread(line.roll_back, ALIAS, why="a test")
                assert (await ask(client))["model"] == f"{LINE}/1"
        finally:
            await guard.close()

    run(test())
    assert list((tmp_path / "scratch").glob("*/versions/*/model.safetensors"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alias": "live"}, RegistryError, "there is no alias 'live'"),
        ({"line": "ffff"}, RegistryError, "no line 'ffff'"),
        ({"registry_root": "/nowhere"}, RegistryError, "there is no registry at /nowhere"),
    ],
)
def test_what_cannot_be_served(storage: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asyncio.run(Guard.open(GuardOptions(storage=str(storage), **options)))
