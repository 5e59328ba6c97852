"""What of a request is HTTP: its token, its body, and errors as OpenAI's clients understand them."""

from __future__ import annotations

import hmac
import logging
import os

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.errors import ConfigError, PipelineError
from pipeline.serving.choice import UnknownModelError
from pipeline.serving.engine import FullError
from pipeline.serving.newest import UnreachableError
from pipeline.serving.options import GuardOptions
from pipeline.serving.refusal import RefusedError
from pipeline.serving.shelf import RETRY_S, LoadError

_BUSY_RETRY_S = 1.0

log = logging.getLogger(__name__)


def token_of(options: GuardOptions) -> bytes | None:
    """The token that requests have to show; None without one.

    Raises:
        ConfigError: when its variable is not set here.
    """
    if options.token_env is None:
        return None
    value = os.environ.get(options.token_env, "").strip()
    if not value:
        raise ConfigError(
            f"token_env: the environment variable {options.token_env} is not set or empty: set it where the replicas "
            "run, or leave the option out to answer whoever asks"
        )
    return value.encode()


def authorise(request: Request, token: bytes | None) -> None:
    """Refuse a request that does not show the token, where one is asked for."""
    if token is None:
        return
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode("latin-1"), token):
        raise RefusedError(401, "a bearer token is asked for, and this is not it", "invalid_api_key")


async def body_of(request: Request, limit: int) -> bytes:
    """The body, of which no more is read than is allowed."""
    too_large = RefusedError(413, f"the body has more than {limit:,} bytes", "request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


def refusal_of(error: Exception) -> RefusedError:
    """An error as the client is told it."""
    match error:
        case RefusedError():
            return error
        case UnknownModelError():
            return RefusedError(404, str(error), "model_not_found", "model")
        case FullError():
            return RefusedError(429, f"{error}: try again", "overloaded", retry_after_s=_BUSY_RETRY_S)
        case UnreachableError():
            text = "which version is in production cannot be found out: the registry does not answer"
            return RefusedError(503, text, "registry_unreachable", retry_after_s=_BUSY_RETRY_S)
        case LoadError():
            text = f"the version that was chosen cannot be served: {error}"
            return RefusedError(503, text, "version_unavailable", retry_after_s=RETRY_S)
        case PipelineError():
            return RefusedError(400, str(error), "invalid_value")
        case _:
            log.exception("a request failed", exc_info=error)
            return RefusedError(500, "the service has failed; its log says why", "internal_error")


async def http_error(request: Request, error: Exception) -> Response:
    """No such path, or the wrong method."""
    assert isinstance(error, HTTPException)
    refused = RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", "unknown_url")
    return JSONResponse(refused.body(), error.status_code, error.headers)
