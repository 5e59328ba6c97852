from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline import progress


def test_ray_shut_down_in_the_middle_of_a_poll_ends_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-C: the main thread shuts Ray down while this thread calls the relay."""
    up, called, escaped = threading.Event(), threading.Event(), []
    up.set()

    def get() -> None:
        up.clear()
        called.set()
        raise AttributeError("'Worker' object has no attribute 'core_worker'")

    relay = SimpleNamespace(get=SimpleNamespace(remote=get))
    actor_class: Any = SimpleNamespace(remote=lambda: relay, options=lambda **_: actor_class)
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _class: actor_class)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(ray, "is_initialized", up.is_set)
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    monkeypatch.setattr(progress, "_POLL_S", 0.01)
    with progress.relayed(lambda *_: None):
        assert called.wait(10)
    assert escaped == []
