"""Alerts to a webhook, beside the watch: one that hangs or is down neither delays nor stops it.

What is to be delivered lies in an outbox, one file an alert, which is removed once the webhook has answered with 2xx.
So what could not be delivered is tried again later, and by the next watch after a restart. A webhook may see an alert
twice: its ``id``, also sent as Idempotency-Key, is the same then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import httpx
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential_jitter,
)
from tenacity.wait import wait_base

from pipeline.errors import ArtifactError
from pipeline.places import Place

_TIMEOUT = httpx.Timeout(connect=5.0, read=10.0, write=10.0, pool=5.0)
_ATTEMPTS = 4
_WAIT = wait_exponential_jitter(initial=1.0, max=30.0)
_AGAIN_S = 60.0
"""Between two rounds over an outbox that could not be emptied."""
_LINGER_S = 15.0
"""What the end of a watch waits for the webhook at most."""


class Webhook:
    """A thread that empties an outbox; a context, whose end waits for it for some seconds.

    Args:
        url: not printed, for it may hold a secret.
        token: sent as bearer token.
        say: a line for the console; called from the thread.
    """

    def __init__(
        self,
        outbox: Place,
        url: str,
        token: str | None,
        say: Callable[[str], None],
        *,
        timeout: httpx.Timeout = _TIMEOUT,
        wait: wait_base = _WAIT,
        again_s: float = _AGAIN_S,
        linger_s: float = _LINGER_S,
    ) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # below that it logs URLs
        self._outbox, self._url, self._say = outbox, url, say
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._client = httpx.Client(timeout=timeout, headers=headers)
        self._wait, self._again_s, self._linger_s = wait, again_s, linger_s
        self._stop, self._news, self._quiet = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self.undelivered = 0
        """Alerts in the outbox after the last round."""

    def __enter__(self) -> Webhook:
        self.wake()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._quiet.wait(self._linger_s)
        self._stop.set()
        self._news.set()
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            self._client.close()

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._quiet.clear()
        self._news.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.wait(self._again_s if self.undelivered else None)
            self._news.clear()
            self._round()
            if not self._news.is_set():
                self._quiet.set()

    def _round(self) -> None:
        failed: str | None = None
        try:
            names = self._outbox.names()
            self.undelivered = len(names)
            for name in names:
                if self._stop.is_set():
                    break
                if (problem := self._deliver(name)) is None:
                    self._outbox.remove(name)
                    self.undelivered -= 1
                else:
                    failed = problem
        except (ArtifactError, FileNotFoundError) as error:
            failed = str(error)
        if failed:
            self._say(f"the webhook did not take {self.undelivered} alert(s) ({failed}); they are kept and tried again")

    def _deliver(self, name: str) -> str | None:
        """Post one alert; returns why that did not work."""
        body = self._outbox.read(name)
        headers = {"Idempotency-Key": name.removesuffix(".json")}
        try:
            for attempt in Retrying(
                stop=stop_after_attempt(_ATTEMPTS) | stop_when_event_set(self._stop),
                wait=self._wait,
                retry=retry_if_exception(_passes),
                sleep=sleep_using_event(self._stop),
                reraise=True,
            ):
                # What it answers beside the status is not read: it may have no end.
                with attempt, self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                    answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            return f"it answered {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__
        return None


def _passes(error: BaseException) -> bool:
    """Whether trying again at once may help: not after an answer that says the request itself is refused."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)
