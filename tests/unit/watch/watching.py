"""A watch whose outputs are scored by a plain function of their text (not a test: shared by tests)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.places import Place
from pipeline.traffic import LogRow
from pipeline.watch.logs import Line
from pipeline.watch.scored import NO_TOKENS, Scored
from pipeline.watch.settings import Settings
from pipeline.watch.subject import Subject
from pipeline.watch.watcher import Watcher

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
RUN = RunConfig.model_validate(
    {"model": {"path": "m"}, "data": {"path": "p.jsonl", "max_prompt_tokens": 8, "max_response_tokens": 8}}
)


def subject(version: int = 1, **changes: Any) -> Subject:
    about: dict[str, Any] = {
        "line": "0123456789abcdef",
        "version": version,
        "id": f"contents of {version}",
        "model": Path("model"),
        "reference": Path("reference"),
        "run": RUN,
        "tokenizer": "t" * 64,
        "risk": "cvar@0.5",
        "measures": {"risk": "up", "vader": "down"},
    }
    return Subject(**(about | changes))


def settings(**changes: Any) -> Settings:
    small = {"baseline_outputs": 100, "per_outputs": 50, "false_alarms": 0.1}
    return Settings(**{"logs": Path("logs"), **small, **changes})


def score(rows: Sequence[LogRow]) -> list[Scored | str]:
    """The output's text is its risk; half of it the score."""
    return [one(float(row.output)) if row.output else NO_TOKENS for row in rows]


def one(risk: float) -> Scored:
    measures = {"risk": risk, "kl": risk / 3, "tokens": 2.0, "vader": risk / 2}
    return Scored(measures, ["a", " b"], [risk, 0.0], cut=False, anew=False)


def line(number: int, text: str | None) -> Line:
    return Line("app.jsonl", number, None if text is None else text.encode())


def rows(values: Sequence[float], start: int = 1, **more: Any) -> list[Line]:
    """Lines of a log whose outputs have these risks."""
    return [
        line(start + i, json.dumps({"prompt": "p", "output": repr(float(value)), "id": f"r{start + i}", **more}))
        for i, value in enumerate(values)
    ]


def watcher(place: Place, said: list[str], **changes: Any) -> Watcher:
    return Watcher(place, "production", "production", settings(**changes), said.append, lambda: NOW)


def logged(place: Place) -> list[dict[str, Any]]:
    """Rows of the comparison log, in order."""
    parts = place.below("comparison")
    return [json.loads(row) for name in parts.names() for row in parts.read(name).splitlines()]
