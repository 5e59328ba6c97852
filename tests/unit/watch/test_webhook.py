"""A webhook that takes alerts, refuses them, is down, or hangs: the watch does not wait for it, and nothing is lost."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from tenacity import wait_fixed

from pipeline.places import Place
from pipeline.watch.webhook import Webhook

FAST: dict[str, Any] = {"timeout": httpx.Timeout(0.3), "wait": wait_fixed(0.01), "again_s": 0.2, "linger_s": 2.0}
SECRET = "/services/T0/secret"


class Server:
    """Answers with the statuses of ``answers`` in turn, the last one again and again; None hangs."""

    def __init__(self, *answers: int | None) -> None:
        self.seen: list[tuple[dict[str, str], Any]] = []
        self.answers = list(answers)
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((dict(self.headers), body))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer is None:
                    outer.release.wait(20)
                    return
                self.send_response(answer)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*answers: int | None) -> Server:
        made.append(Server(*answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def outbox(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "outbox"))


def put(outbox: Place, number: int) -> None:
    outbox.write(f"alert-{number}.json", json.dumps({"id": f"alert-{number}"}).encode())


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_alert_is_posted_with_its_token_and_name(outbox: Place, serve: Callable[..., Server]) -> None:
    server, said = serve(200), []
    put(outbox, 1)
    with Webhook(outbox, server.url, "sesame", said.append, **FAST) as webhook:
        wait_for(lambda: not outbox.names())
        put(outbox, 2)
        webhook.wake()
    [(headers, body), second] = server.seen
    assert body == {"id": "alert-1"}
    assert headers["Authorization"] == "Bearer sesame"
    assert headers["Idempotency-Key"] == "alert-1"
    assert second[1] == {"id": "alert-2"}, "the end waits for what is new"
    assert said == []
    assert webhook.undelivered == 0


def test_what_passes_is_tried_again_at_once(outbox: Place, serve: Callable[..., Server]) -> None:
    server = serve(503, 429, 204)
    put(outbox, 1)
    with Webhook(outbox, server.url, None, lambda text: None, **FAST):
        wait_for(lambda: not outbox.names())
    assert len(server.seen) == 3


def test_what_is_refused_is_kept_and_said_without_the_url(outbox: Place, serve: Callable[..., Server]) -> None:
    server, said = serve(404), []
    put(outbox, 1)
    with Webhook(outbox, server.url, None, said.append, **(FAST | {"again_s": 60.0})) as webhook:
        wait_for(lambda: bool(said))
    assert said == ["the webhook did not take 1 alert(s) (it answered 404); they are kept and tried again"]
    assert len(server.seen) == 1, "a refusal is not repeated at once"
    assert outbox.names() == ["alert-1.json"]
    assert webhook.undelivered == 1


def test_a_webhook_that_is_down_gets_it_from_the_next_watch(outbox: Place, serve: Callable[..., Server]) -> None:
    server, said = serve(200), []
    put(outbox, 1)
    with Webhook(outbox, "http://127.0.0.1:9/x", None, said.append, **FAST):
        pass
    assert "ConnectError" in said[0]
    assert outbox.names() == ["alert-1.json"]
    with Webhook(outbox, server.url, None, said.append, **FAST):
        wait_for(lambda: not outbox.names())
    assert [body for _, body in server.seen] == [{"id": "alert-1"}]


def test_a_webhook_that_hangs_holds_up_nobody(outbox: Place, serve: Callable[..., Server]) -> None:
    server, said = serve(None), []
    put(outbox, 1)
    begun = time.monotonic()
    with Webhook(outbox, server.url, None, said.append, **(FAST | {"linger_s": 0.2})) as webhook:
        for number in range(2, 12):
            put(outbox, number)
            webhook.wake()
        assert time.monotonic() - begun < 1.0
    assert time.monotonic() - begun < 5.0
    assert len(outbox.names()) == 11
    assert SECRET not in "".join(said)


def test_it_comes_back_after_an_outage(outbox: Place, serve: Callable[..., Server]) -> None:
    server = serve(*([500] * 4), 200)
    put(outbox, 1)
    with Webhook(outbox, server.url, None, lambda text: None, **FAST):
        wait_for(lambda: not outbox.names())
    assert len(server.seen) == 5
