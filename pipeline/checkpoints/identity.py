"""What a run is: a checkpoint is only ever continued by the run that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.nested import flat

Identity = Mapping[str, Any]
"""``options`` (nested, those that change what is learnt), ``libraries`` (versions), and digests of what is read:
``data``, ``model``, ``reference`` (None for fine-tuning)."""

_WHAT = {"data": "the data", "model": "the model", "reference": "the reference"}


def differences(there: Identity, here: Identity) -> list[str]:
    """In words, what a checkpoint was made with and the run is not; empty when it is the same run."""
    return [
        f"{what} {_short(old)} there, {_short(new)} here"
        for what, old, new in _pairs(there, here)
        if _canonical(old) != _canonical(new)
    ]


def _pairs(there: Identity, here: Identity) -> Iterator[tuple[str, Any, Any]]:
    for name, what in _WHAT.items():
        yield what, there.get(name), here.get(name)
    for section in ("options", "libraries"):
        old, new = flat(there.get(section) or {}), flat(here.get(section) or {})
        for name in sorted(old.keys() | new.keys()):
            yield name, old.get(name), new.get(name)
    named = {*_WHAT, "options", "libraries"}
    for name in sorted((there.keys() | here.keys()) - named):
        yield name, there.get(name), here.get(name)


def _canonical(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) >= 32 and text.isalnum() else text
