"""What the guard refuses, as OpenAI's error object. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RefusedError(Exception):
    """A request that is not answered, and why."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    kind: str = field(default="", init=False)
    """OpenAI's ``type``."""

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return {"error": {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}}

    def headers(self) -> dict[str, str]:
        """Of the answer."""
        found = {} if self.retry_after_s is None else {"retry-after": str(math.ceil(self.retry_after_s))}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})
