"""Names that the tests of the guard share (not a test)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx

LINE = "0123456789abcdef"
ALIAS = "production"

OpenGuard = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
"""Opens a guard with options on a test's own storage, and gives a client of it."""
