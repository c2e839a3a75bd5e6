"""A client of any OpenAI-compatible server. Its `complete` is a `Complete` that the guard can call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from modint_guard.errors import ConfigError, EndpointError, EndpointTimeout, EndpointUnreachable
from modint_guard.types import JSON

TOP_LOGPROBS = (20, 10, 5, 2)  # how many to ask for, tried in this order: servers often allow 20 or 5
# How long an idle connection is used again. Servers close theirs after 5 seconds (uvicorn's default) or more;
# a call that meets the closing is lost.
KEEP_IDLE_S = 2.0
_SHOWN_CHARACTERS = 200


class Endpoint:
    """`async with Endpoint("http://127.0.0.1:8000") as endpoint: await endpoint.complete(body)`.

    base_url: with or without "/v1" at its end. api_key: sent as a bearer token. timeout_s: for one whole
    call. uds: the path of a Unix socket to connect to instead of the URL's host. headers: sent with every
    call.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        uds: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._headers = dict(headers or {})
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._uds = uds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Endpoint:
        connector: aiohttp.BaseConnector
        if self._uds:
            connector = aiohttp.UnixConnector(self._uds, keepalive_timeout=KEEP_IDLE_S)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_IDLE_S)
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, body: JSON) -> JSON:
        """One chat completion, not streamed. Raises EndpointError, or one of its subclasses."""
        return await self._call("POST", "/v1/chat/completions", body)

    async def models(self) -> list[JSON]:
        """The models that the endpoint serves, LoRA adapters included. Raises EndpointError."""
        listed = (await self._call("GET", "/v1/models")).get("data")
        if not isinstance(listed, list):
            raise EndpointError(
                f"{self.base_url}/v1/models lists no `data`: is this an OpenAI-compatible server?"
            )
        return listed

    async def _call(self, method: str, path: str, body: JSON | None = None) -> JSON:
        if self._session is None:
            raise EndpointUnreachable(f"The client of {self.base_url} is closed: use it inside `async with`.")
        url = self.base_url + path
        data = None if body is None else orjson.dumps(body)
        headers = {"content-type": "application/json"} if data is not None else {}
        try:
            async with self._session.request(method, url, data=data, headers=headers) as response:
                return _document(url, response.status, await response.read())
        except TimeoutError as exc:
            raise EndpointTimeout(f"{url} did not answer within {self._timeout_s:g} seconds.") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise EndpointUnreachable(
                f"{url} cannot be reached ({exc}): is the server running there?"
            ) from exc


def read_key(file: Path | None) -> str | None:
    """The API key in a file; None without a file. Raises ConfigError if the file cannot be read."""
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read ({exc.strerror}): name a file that holds the key") from exc


def _document(url: str, status: int, raw: bytes) -> JSON:
    """The JSON object of a successful response. Raises EndpointError for any other response."""
    try:
        document: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = None
    if status >= 400:
        raise EndpointError(f"{url} answered {status}: {_message(document, raw)}", status=status, body=raw)
    if not isinstance(document, dict):
        raise EndpointError(f"{url} answered {status}, but not with a JSON object.", status=status, body=raw)
    return document


def _message(document: Any, raw: bytes) -> str:
    """The message of an error body, whatever its shape; bounded."""
    error = document.get("error", document) if isinstance(document, dict) else document
    message = error.get("message", error) if isinstance(error, dict) else error
    text = message if isinstance(message, str) else raw.decode("utf-8", "replace")
    return text[:_SHOWN_CHARACTERS]
