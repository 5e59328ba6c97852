"""What people and machines see of a watch: the page, and the metrics on a port and in a file."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from prometheus_client import start_http_server

from pipeline.errors import ConfigError
from pipeline.places import Place
from pipeline.release_config import Language
from pipeline.report.watch import render_watch
from pipeline.storage import Storage
from pipeline.watch.alerts import read_alerts
from pipeline.watch.metrics import Metrics, Surroundings
from pipeline.watch.summary import summarise
from pipeline.watch.watcher import Watcher

PAGE, METRICS = "report.html", "metrics.prom"


class Publisher:
    """Of one watch.

    Args:
        place: its directory.
        target: what is watched, in words; ``alias``: the alias, None for a version by its number.
    """

    def __init__(self, storage: Storage, place: Place, target: str, alias: str | None, language: Language) -> None:
        self._storage, self._place = storage, place
        self._target, self._alias, self._language = target, alias, language
        self._metrics = Metrics()

    def serve(self, port: int, stack: contextlib.ExitStack) -> None:
        """Answer scrapes at a port, until the stack is closed.

        Raises:
            ConfigError: when the port cannot be used.
        """
        try:
            server, thread = start_http_server(port, registry=self._metrics.registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--metrics_port: {port} cannot be used: {error}; choose another one") from error
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)

    def committed(self, watcher: Watcher, now: Surroundings) -> None:
        """Show the metrics of a commit."""
        self._metrics.set(watcher.state, now)

    def publish(self, watcher: Watcher, line: str) -> None:
        """Write page and metrics anew."""
        subject = watcher.subject
        assert subject is not None
        alerts = [
            one
            for one in read_alerts(self._storage, line)
            if one.alias == self._alias and (one.alias is not None or one.version == subject.version)
        ]
        content = summarise(
            watcher.state,
            subject,
            watcher.rules(),
            watcher.baseline_values(),
            self._target,
            alerts,
            datetime.now(UTC),
        )
        self._place.write(METRICS, self._metrics.text())
        self._place.write(PAGE, render_watch(content, self._language).encode())
