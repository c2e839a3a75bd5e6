"""Every error leaves in OpenAI's envelope, whatever shape it arrived in."""

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
_ECHO = re.compile(
    r"[\s,\[{(]*['\"]?\binput(_value)?['\"]?\s*[:=].*", re.DOTALL
)  # pydantic embeds the client's body


@dataclass(frozen=True)
class Failure:
    """What the client gets instead of an answer."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after_s: int | None = None

    def envelope(self) -> JSON:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status < 500 and self.status not in (408, 429):
            headers["x-should-retry"] = "false"
        if self.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body was never read
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(orjson.dumps(self.envelope()), self.status, headers, "application/json")


def of_request(exc: RequestError) -> Failure:
    retry_after_s = 1 if exc.status == 503 else None
    return Failure(exc.status, str(exc), exc.type, str(exc.code), exc.param, retry_after_s)


def of_endpoint(exc: EndpointError) -> Failure:
    """An upstream's error in our shape. A refused key of ours is no fault of the client: 502."""
    if isinstance(exc, EndpointTimeout):
        return Failure(504, "the engine did not answer in time", "upstream_error", "upstream_timeout")
    if isinstance(exc, EndpointUnreachable):
        return Failure(502, "the engine cannot be reached", "upstream_error", "upstream_unreachable")
    if exc.status is None or exc.status < 400:
        return Failure(502, str(exc), "upstream_error", "upstream_protocol")
    if exc.status in (401, 403):
        return Failure(502, "the engine refused the gateway's key", "upstream_error", "upstream_auth")
    said = translate(exc.body)
    fallback = f"the engine answered with status {exc.status}"
    type_ = "invalid_request_error" if exc.status < 500 else "upstream_error"
    return Failure(
        exc.status,
        said["message"] or fallback,
        said["type"] or type_,
        said["code"] or f"upstream_{exc.status}",
        said["param"],
    )


def translate(body: bytes) -> dict[str, str | None]:
    """Message, type, code and param of an error body: an envelope, a bare string or unreadable (HTML)."""
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    inner = parsed.get("error", parsed.get("detail", parsed)) if isinstance(parsed, dict) else parsed
    if isinstance(inner, str):
        inner = {"message": inner}
    if not isinstance(inner, Mapping):
        inner = {}
    return {key: _text(inner.get(key)) for key in ("message", "type", "code", "param")}


def _text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _ECHO.sub("", str(value))[:MAX_MESSAGE_CHARS]


def kind_of(exc: EndpointError) -> str:
    """The label of modint_upstream_errors_total."""
    if isinstance(exc, EndpointTimeout):
        return "timeout"
    if isinstance(exc, EndpointUnreachable):
        return "unreachable"
    if exc.status is None or exc.status < 400:
        return "protocol"
    return "client_error" if exc.status < 500 else "server_error"


INTERNAL = Failure(
    500, "the gateway failed; its log has the cause under this request id", "server_error", "internal_error"
)


def unavailable(message: str, code: str) -> RequestError:
    """503 with Retry-After: nothing is wrong with the request, this moment is."""
    return RequestError(message, code=code, status=503, type="overloaded_error")


def install(app: FastAPI) -> None:
    """Envelope for what the routes do not catch themselves: unknown routes, wrong methods, our own bugs."""
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
    response = Failure(exc.status_code, message, "invalid_request_error", code).response()
    for name, value in (exc.headers or {}).items():
        response.headers[name] = value
    return response


async def _request(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestError)
    return of_request(exc).response()


async def _bug(request: Request, exc: Exception) -> Response:
    LOGGER.error("internal_error", exc_info=exc)
    return INTERNAL.response()
