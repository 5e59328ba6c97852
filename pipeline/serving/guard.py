"""The service itself: from a request's bytes to an answer by the right version. It knows HTTP, but not Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.console import switch_off_bars
from pipeline.release.line import Line
from pipeline.release.state import State
from pipeline.release.where import Where
from pipeline.serving.answers import Head, Output, broken, chunk, closing, opening, usage, whole
from pipeline.serving.choice import Choice, check_alias, choose, names, share_of, wanted
from pipeline.serving.decoding import Piece, Row
from pipeline.serving.engine import Engine, Loaded
from pipeline.serving.http import authorise, body_of, http_error, refusal_of, token_of
from pipeline.serving.log import LogWriter
from pipeline.serving.metrics import Meters
from pipeline.serving.newest import Newest, Reader, UnreachableError
from pipeline.serving.options import GuardOptions
from pipeline.serving.prompts import Prompt, encode, rows_of, settings_of
from pipeline.serving.request import ChatRequest, CompletionRequest, parse
from pipeline.serving.shelf import LoadError, Shelf
from pipeline.serving.versions import load_version
from pipeline.storage import open_storage
from pipeline.traffic import LogRow

POLL_S = 2.0
"""How often an idle replica looks whether there is something to load ahead."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answering:
    """A request that a version is answering."""

    request: CompletionRequest | ChatRequest
    head: Head
    loaded: Loaded
    prompts: Sequence[Prompt]
    rows: Sequence[Row]
    """``n`` for each prompt, in this order."""
    pieces: asyncio.Queue[tuple[int, Piece | Exception]]

    @property
    def used(self) -> dict[str, int]:
        return usage(sum(len(one.ids) for one in self.prompts), sum(len(row.ids) for row in self.rows))


class Guard:
    """Answers requests with versions of one line. Made by `open`, within a running event loop."""

    def __init__(self, options: GuardOptions, line: Line, into: Path, token: bytes | None) -> None:
        self._options, self.line, self._token = options, line, token
        self._meters = Meters()
        device = torch.device("cuda" if options.gpus_per_replica else "cpu")
        self._newest = Newest(
            Reader(line), stale_s=options.stale_s, lookup_s=options.lookup_s, failed=self._lookup_failed
        )
        self._shelf: Shelf[Loaded] = Shelf(
            lambda version: load_version(line, version, into, device), options.max_loaded, failed=self._load_failed
        )
        self._engine = Engine(
            max_rows=options.max_rows,
            max_batch_tokens=options.max_batch_tokens,
            max_batches=options.max_batches,
            max_waiting=options.max_queued,
            batch_wait_s=options.batch_wait_s,
        )
        self._log = None if options.log is None else LogWriter(Path(options.log), self._meters.log_dropped.inc)
        self._began = int(time.time())
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, options: GuardOptions) -> Guard:
        """A guard that has loaded what is served, or has tried to.

        Raises:
            ConfigError: when the token's variable is not set.
            RegistryError: when there is no such line or alias.
        """
        token = token_of(options)
        switch_off_bars()
        line = await asyncio.to_thread(Where(options.storage, options.registry_root, options.line).open)
        state = await asyncio.to_thread(Reader(line))
        check_alias(state, options)
        if not options.gpus_per_replica:
            torch.set_num_threads(max(1, int(options.cpus_per_replica)))
        guard = cls(options, line, open_storage(options.storage).here / "versions", token)
        for version in wanted(state, options)[:1]:
            with contextlib.suppress(LoadError):  # requests are told; another version may be served by then
                await guard._shelf.get(version, options.load_wait_s)
        guard._watching = asyncio.create_task(guard._watch())
        return guard

    async def close(self) -> None:
        """Stop; outputs that have not ended are told so."""
        if self._watching is not None:
            self._watching.cancel()
        self._newest.close()
        self._shelf.close()
        await asyncio.to_thread(self._engine.close)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(
            routes=[
                Route("/v1/completions", self._guarded(self._complete(CompletionRequest)), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self._complete(ChatRequest)), methods=["POST"]),
                Route("/v1/models", self._guarded(self._models), methods=["GET"]),
                Route("/healthz", self._health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: http_error},
        )

    # -- routes --------------------------------------------------------------------------------------------

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A route that asks for the token, and whose refusals are OpenAI's errors."""

        async def guarded(request: Request) -> Response:
            began = time.monotonic()
            try:
                authorise(request, self._token)
                return await answer(request)
            except Exception as error:
                refused = refusal_of(error)
                self._count("none", refused.status, began)
                return JSONResponse(refused.body(), refused.status, refused.headers())

        return guarded

    def _complete(self, kind: type[CompletionRequest] | type[ChatRequest]) -> Callable[[Request], Awaitable[Response]]:
        async def complete(http: Request) -> Response:
            began = time.monotonic()
            request = parse(kind, await body_of(http, self._options.max_body_bytes))
            answering = await self._begin(request, http.headers.get("x-request-id", ""))
            if request.stream:
                events = self._stream(answering, began)
                return StreamingResponse(events, 200, answering.head.headers(), "text/event-stream")
            return await self._whole(answering, began)

        return complete

    async def _models(self, request: Request) -> Response:
        found = names(await self._state(), self._options)
        data = [
            {"id": name, "object": "model", "created": self._began, "owned_by": self.line.name, "version": version}
            for name, version in found.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def _health(self, request: Request) -> Response:
        """Without the token: for probes. What is said names no more than versions."""
        try:
            state = await self._newest.get()
        except UnreachableError:
            return JSONResponse({"status": "the registry cannot be reached"}, 503)
        version, loaded = state.alias(self._options.alias).version, sorted(self._shelf.loaded())
        there = version in loaded or (self._options.fallback == "reference" and 0 in loaded)
        told = {"line": self.line.name, "alias": self._options.alias, "version": version, "loaded": loaded}
        return JSONResponse({"status": "ok" if there else "not loaded", **told}, 200 if there else 503)

    # -- answering -----------------------------------------------------------------------------------------

    async def _begin(self, request: CompletionRequest | ChatRequest, given_id: str) -> _Answering:
        """Choose the version, and give the engine what it has to decode."""
        identity = given_id if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        state = await self._state()
        choice = choose(state, request.model, request.user or identity, self._options, self.line.name)
        loaded = await self._loaded(choice)
        prompts = await asyncio.to_thread(encode, request, loaded, self._options)
        settings = settings_of(request, prompts, loaded, self._options)
        chat = isinstance(request, ChatRequest)
        answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{identity}"
        head = Head(answer_id, int(time.time()), self.line.name, loaded.version, loaded.id, chat)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece | Exception]]()

        def tell(index: int, piece: Piece | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who asked
                loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

        rows = rows_of(request, prompts, settings, tell)
        self._engine.submit(loaded, rows)
        return _Answering(request, head, loaded, prompts, rows, pieces)

    async def _state(self) -> State:
        began = time.monotonic()
        state = await self._newest.get()
        self._meters.lookup.observe(time.monotonic() - began)
        self._shelf.want(wanted(state, self._options))
        return state

    async def _loaded(self, choice: Choice) -> Loaded:
        try:
            return await self._shelf.get(choice.version, self._options.load_wait_s)
        except LoadError:
            if self._options.fallback == "none" or choice.version == 0:
                raise
        self._meters.fallbacks.inc()
        return await self._shelf.get(0, self._options.load_wait_s)

    async def _pieces(self, answering: _Answering) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of all outputs as they come, until all have ended. Who stops listening cancels what is left."""
        left = len(answering.rows)
        try:
            while left:
                index, piece = await answering.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.reason is not None
                yield index, piece
        finally:
            for row in answering.rows:
                row.cancelled = True

    async def _whole(self, answering: _Answering, began: float) -> Response:
        outputs = [Output() for _ in answering.rows]
        async with contextlib.aclosing(self._pieces(answering)) as pieces:
            async for index, piece in pieces:
                outputs[index].add(piece)
        self._done(answering, [output.text for output in outputs], began)
        logprobs = answering.request.top_logprobs is not None
        return JSONResponse(whole(answering.head, outputs, answering.used, logprobs), 200, answering.head.headers())

    async def _stream(self, answering: _Answering, began: float) -> AsyncIterator[bytes]:
        head, logprobs = answering.head, answering.request.top_logprobs is not None
        texts = [""] * len(answering.rows)
        try:
            for index in range(len(texts)):
                if (first := opening(head, index)) is not None:
                    yield first
            async with contextlib.aclosing(self._pieces(answering)) as pieces:
                async for index, piece in pieces:
                    yield chunk(head, index, piece, len(texts[index]), logprobs)
                    texts[index] += piece.text
        except Exception as error:
            refused = refusal_of(error)
            self._count(str(head.version), refused.status, began)
            yield broken(refused.body())
            return
        finally:
            for row in answering.rows:
                row.cancelled = True  # also when the client left before the first piece
        self._done(answering, texts, began)
        wishes = answering.request.stream_options
        yield closing(head, answering.used if wishes is not None and wishes.include_usage else None)

    def _done(self, answering: _Answering, texts: Sequence[str], began: float) -> None:
        """Count an answer, and log it if it is one of the share."""
        version = str(answering.head.version)
        self._count(version, 200, began)
        self._meters.tokens.inc(sum(len(row.ids) for row in answering.rows), {"version": version})
        if self._log is None or share_of(answering.head.id, "log") >= self._options.log_share:
            return
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        for index, (row, text) in enumerate(zip(answering.rows, texts, strict=True)):
            prompt = answering.prompts[index // answering.request.n]
            self._log.write(
                LogRow(
                    prompt=prompt.text,
                    output=text,
                    id=answering.head.id,
                    time=when,
                    line=self.line.name,
                    version=answering.head.version,
                    tokenizer=answering.loaded.tokenizer_digest,
                    prompt_ids=row.prompt_ids,
                    output_ids=tuple(row.ids),
                    finished=row.finished,
                )
            )
            self._meters.logged.inc()

    # -- around it -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Load ahead what the registry says will be needed, also when nobody asks."""
        while True:
            try:
                state = await self._newest.get()
                self._shelf.want(wanted(state, self._options))
                self._meters.version.set(state.alias(self._options.alias).version)
            except UnreachableError:
                pass  # counted and logged
            except Exception:  # this task has to live on
                log.exception("the look at the registry failed")
            load, age = self._engine.load(), self._newest.age_s
            self._meters.waiting.set(load.waiting)
            self._meters.running.set(load.running)
            self._meters.loaded.set(len(self._shelf.loaded()))
            if age is not None:
                self._meters.age.set(age)
            await asyncio.sleep(POLL_S)

    def _count(self, version: str, status: int, began: float) -> None:
        self._meters.requests.inc(1, {"version": version, "status": str(status)})
        self._meters.seconds.observe(time.monotonic() - began)

    def _lookup_failed(self, why: str) -> None:
        self._meters.lookup_failures.inc()
        log.warning("look-up in the registry: %s", why)

    def _load_failed(self, version: int, why: str) -> None:
        self._meters.load_failures.inc(1, {"version": str(version)})
        log.error("version %d cannot be loaded: %s", version, why)
