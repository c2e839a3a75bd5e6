"""The HTTP client that calls the engine: pooled connections, a limit to every wait, errors by their kind."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import aiohttp
import orjson

from modint_guard.chat.unread import LARGE, loads
from modint_guard.errors import EndpointError, EndpointTimeout, EndpointUnreachable
from modint_guard.types import JSON
from modint_server.errors import kind_of

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
METRICS = "/metrics"
MAX_ERROR_BYTES = 64 * 1024
PIECE_BYTES = 256 * 1024  # of a body, sent at once
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_KEEP_IDLE_S = 4.0  # less than the 5 s after which uvicorn, and so vLLM, closes an idle connection
# The connection was closed, or could not be made, before the first byte of an answer: safe to try again.
_CLOSED = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionResetError)


class Upstream:
    """An engine at a base URL or on a Unix socket, called with the gateway's own key and headers.

    Use it inside `async with`. Every failure is an EndpointError; `on_failure` is called with its kind first.
    """

    def __init__(
        self,
        base_url: str,
        *,
        uds: Path | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 300.0,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.on_failure: Callable[[str], None] = lambda kind: None
        self._uds = uds
        self._headers = {"accept-encoding": "identity"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._sessions: tuple[aiohttp.ClientSession, ...] = ()

    async def __aenter__(self) -> Self:
        # Kept connections first, then a fresh one: the engine may have closed any of those that were kept.
        self._sessions = (self._session(keepalive_timeout=_KEEP_IDLE_S), self._session(force_close=True))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for session in self._sessions:
            await session.close()
        self._sessions = ()

    def _session(self, **keeping: Any) -> aiohttp.ClientSession:
        # The gateway itself bounds the requests in flight: a limit here would queue them out of sight.
        connector = (
            aiohttp.UnixConnector(str(self._uds), limit=0, **keeping)
            if self._uds
            else aiohttp.TCPConnector(limit=0, **keeping)
        )
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout_s, sock_read=self._read_timeout_s
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=self._headers,
            trust_env=False,
            auto_decompress=False,
        )

    async def complete(self, body: JSON, headers: Mapping[str, str] = NO_HEADERS) -> JSON:
        """A chat body → its completion (a core `Complete`); raises EndpointError."""
        data = await self.completed(body, headers)
        return json_object(data) if len(data) <= LARGE else await asyncio.to_thread(json_object, data)

    async def completed(self, body: JSON, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """The same, not read."""
        return await self.post(CHAT, orjson.dumps({**body, "stream": False}), headers)

    async def models(self) -> list[JSON]:
        """The `data` of the engine's model list; raises EndpointError."""
        async with self._opened("GET", MODELS, None) as response:
            listed = json_object(await self._read(response))
        if not isinstance(data := listed.get("data"), list):
            raise EndpointError(
                f"{self.base_url}{MODELS} holds no list: is this an OpenAI-compatible server?"
            )
        return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def metrics(self) -> bytes:
        """The engine's own Prometheus page; raises EndpointError."""
        async with self._opened("GET", METRICS, None) as response:
            return await self._read(response)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
        """The whole answer's bytes; raises EndpointError."""
        async with self._opened("POST", path, body, headers) as response:
            return await self._read(response)

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's bytes as they come; an error before or between them is an EndpointError."""
        async with self._opened("POST", path, body, headers) as response:
            if response.content_type != "text/event-stream":
                raise self.failed(EndpointError(f"a stream was asked for and {response.content_type} came"))
            yield self._pieces(response)

    @asynccontextmanager
    async def passed(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """The content type of an answer, and its bytes as they come; an error is an EndpointError."""
        async with self._opened("POST", path, body, headers) as response:
            yield _kind(response), self._pieces(response)

    async def page(self, path: str) -> tuple[str, bytes]:
        """The content type and the bytes of a page of the engine; raises EndpointError."""
        async with self._opened("GET", path, None) as response:
            return _kind(response), await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return await collected(self._pieces(response))

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.failed(_endpoint_error(exc)) from exc

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            response = await self._sent(method, path, body, headers)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.failed(_endpoint_error(exc)) from exc
        async with response:
            if response.status != 200:
                raise self.failed(await _refusal(response))
            yield response

    async def _sent(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        assert self._sessions, "use the upstream inside `async with`"
        if body is not None:
            headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        url = self.base_url + path

        async def on(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            data = pieces_of(body) if body is not None else None
            return await session.request(method, url, data=data, headers=headers, allow_redirects=False)

        kept_connections, fresh_connections = self._sessions
        with suppress(*_CLOSED):
            return await on(kept_connections)
        return await on(fresh_connections)

    def failed(self, error: EndpointError) -> EndpointError:
        """Tells `on_failure` of an error, and returns it so that the caller can raise it."""
        self.on_failure(kind_of(error))
        return error


async def collected(pieces: AsyncIterator[bytes]) -> bytes:
    """All pieces as one, not copied at the end: that would hold up other requests, 40 ms for 100 MB."""
    whole = io.BytesIO()
    async for piece in pieces:
        whole.write(piece)
    return whole.getvalue()


def json_object(data: bytes, source: str = "the engine's answer") -> JSON:
    """The JSON object in `data`. Raises EndpointError for anything else (HTML, half a document).

    Of a large one the log-probabilities are not read yet (`modint_guard.chat.unread`). source: how the error
    calls the data.
    """
    try:
        parsed = loads(data)
    except ValueError as exc:
        raise EndpointError(f"{source} is no JSON") from exc
    if not isinstance(parsed, dict):
        raise EndpointError(f"{source} is no JSON object")
    return parsed


async def pieces_of(body: bytes | memoryview) -> AsyncIterator[memoryview]:
    """What is sent at once of a body, not copied: other requests go on in between."""
    whole = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        if start:
            await asyncio.sleep(0)
        yield whole[start : start + PIECE_BYTES]


def _kind(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("content-type", "application/octet-stream")


async def _refusal(response: aiohttp.ClientResponse) -> EndpointError:
    body = b""
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        while piece := await response.content.read(MAX_ERROR_BYTES - len(body)):  # as much as came at once
            body += piece
    return EndpointError(
        f"the engine answered with status {response.status}",
        status=response.status,
        body=body,
        retry_after=response.headers.get("retry-after"),
    )


def _endpoint_error(exc: Exception) -> EndpointError:
    if isinstance(exc, TimeoutError):
        return EndpointTimeout("the engine did not answer in time")
    if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ServerDisconnectedError | OSError):
        return EndpointUnreachable(f"the engine cannot be reached ({type(exc).__name__})")
    return EndpointError(f"the engine broke the connection ({type(exc).__name__})")
