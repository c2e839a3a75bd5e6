"""Turns every error into OpenAI's error envelope, whatever its shape was."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from modint_guard.errors import EndpointError, EndpointTimeout, EndpointUnreachable, RequestError
from modint_guard.types import JSON
from modint_server.logs import LOGGER

MAX_MESSAGE_CHARS = 1000
MAX_COMPLAINTS = 5
_PAUSE = re.compile(r"\d{1,9}|[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
# Pydantic repeats the client's body in its messages, from here on.
_ECHO = re.compile(r"[\s,\[{(]*['\"]?\binput(_value)?['\"]?\s*[:=].*", re.DOTALL)


@dataclass(frozen=True)
class ErrorAnswer:
    """An error as the client gets it: HTTP status, and the fields of OpenAI's envelope."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after: str | None = None  # seconds, or a date

    def envelope(self) -> JSON:
        """The body: {"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The envelope with its status and the headers that clients act on."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["retry-after"] = self.retry_after
        if self.status < 500 and self.status not in (408, 429):
            headers["x-should-retry"] = "false"
        if self.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body was never read
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(orjson.dumps(self.envelope()), self.status, headers, "application/json")


def of_request(exc: RequestError) -> ErrorAnswer:
    """The failure that answers a request which the gateway refuses."""
    retry_after = "1" if exc.status == 503 else None
    return ErrorAnswer(exc.status, str(exc), exc.type, str(exc.code), exc.param, retry_after)


def of_endpoint(exc: EndpointError) -> ErrorAnswer:
    """The failure that answers an error of the engine.

    If the engine refuses the gateway's own key, that is no fault of the client: 502.
    """
    if isinstance(exc, EndpointTimeout):
        return ErrorAnswer(504, "the engine did not answer in time", "upstream_error", "upstream_timeout")
    if isinstance(exc, EndpointUnreachable):
        return ErrorAnswer(502, "the engine cannot be reached", "upstream_error", "upstream_unreachable")
    if exc.status is None or exc.status < 400:
        return ErrorAnswer(502, str(exc), "upstream_error", "upstream_protocol")
    if exc.status in (401, 403):
        return ErrorAnswer(502, "the engine refused the gateway's key", "upstream_error", "upstream_auth")
    upstream = translate(exc.body)
    fallback = f"the engine answered with status {exc.status}"
    type_ = "invalid_request_error" if exc.status < 500 else "upstream_error"
    return ErrorAnswer(
        exc.status,
        upstream["message"] or fallback,
        upstream["type"] or type_,
        upstream["code"] or f"upstream_{exc.status}",
        upstream["param"],
        _pause(exc.retry_after),
    )


def _pause(retry_after: str | None) -> str | None:
    """The engine's Retry-After, if it is whole seconds or a date as RFC 9110 writes them."""
    return retry_after if retry_after and _PAUSE.fullmatch(retry_after) else None


def translate(body: bytes) -> dict[str, str | None]:
    """Message, type, code and param of an error's body; None for those that it does not have.

    The body may be an envelope, a plain string, FastAPI's list of complaints, or something else such as HTML
    (all None).
    """
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    inner = parsed.get("error", parsed.get("detail", parsed)) if isinstance(parsed, dict) else parsed
    if isinstance(inner, list):
        inner = "; ".join(_complaint(each) for each in inner[:MAX_COMPLAINTS] if isinstance(each, Mapping))
    if isinstance(inner, str):
        inner = {"message": inner}
    if not isinstance(inner, Mapping):
        inner = {}
    return {key: _text(inner.get(key)) for key in ("message", "type", "code", "param")}


def _complaint(each: Mapping[str, object]) -> str:
    """Where in a request what is wrong."""
    where, what = each.get("loc"), _text(each.get("msg")) or "invalid"
    path = ".".join(map(str, where[1:])) if isinstance(where, list) else ""
    return f"{path}: {what}" if path else what


def _text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _ECHO.sub("", str(value))[:MAX_MESSAGE_CHARS]


def kind_of(exc: EndpointError) -> str:
    """The `kind` label of modint_upstream_errors_total."""
    if isinstance(exc, EndpointTimeout):
        return "timeout"
    if isinstance(exc, EndpointUnreachable):
        return "unreachable"
    if exc.status is None or exc.status < 400:
        return "protocol"
    return "client_error" if exc.status < 500 else "server_error"


INTERNAL = ErrorAnswer(
    500, "the gateway failed; its log has the cause under this request id", "server_error", "internal_error"
)


def unavailable(message: str, code: str) -> RequestError:
    """A 503 with Retry-After: the request is right, and may be repeated later."""
    return RequestError(message, code=code, status=503, type="overloaded_error")


def install(app: FastAPI) -> None:
    """Envelopes for what the routes do not handle: unknown routes, wrong methods, and bugs of our own."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestError, _request)
    app.add_exception_handler(Exception, _bug)


async def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    route = f"{request.method} {request.url.path[:100]}"
    message = {404: f"unknown route {route}", 405: f"method not allowed: {route}"}.get(
        exc.status_code, str(exc.detail)
    )
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
    response = ErrorAnswer(exc.status_code, message, "invalid_request_error", code).response()
    for name, value in (exc.headers or {}).items():
        response.headers[name] = value
    return response


async def _request(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestError)
    return of_request(exc).response()


async def _bug(request: Request, exc: Exception) -> Response:
    LOGGER.error("internal_error", exc_info=exc)
    return INTERNAL.response()
