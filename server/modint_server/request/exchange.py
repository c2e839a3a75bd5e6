"""One HTTP exchange: writing to the client, noticing that it left, and the facts recorded at the end."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modint_guard.report import Report
from modint_guard.types import JSON
from modint_server.engine.upstream import pieces_of
from modint_server.errors import ErrorAnswer
from modint_server.metrics import NOBODY, Served
from modint_server.request.intake import ClientLeft
from modint_server.request.keys import ANYBODY, Client
from modint_server.request.sse import DONE, frame

MAX_HELD_BYTES = 8 * 2**20
_SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass
class Record:
    """What metrics and the log line are made of; filled in as the request goes through its stages."""

    route: str
    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)  # W3C trace context, as the client sent it
    started: float = field(default_factory=time.perf_counter)
    served: Served = NOBODY
    stream: bool = False
    outcome: str | None = None
    status: int | None = None
    code: str | None = None
    client: Client = ANYBODY
    images: int = 0
    is_busy: bool = False  # whether so many were in flight when it came that it is not probed
    hides_usage: bool = False  # whether the gateway alone asked a stream for its tokens
    measures_noise: bool = False  # whether the gateway itself asks the request twice
    usage: Any = None
    report: Report | None = None
    others: Sequence[Report] = ()  # on the further answers, if several were asked for
    coverage: float | None = None  # probability held by the tokens listed at the first content position
    first_token_s: float | None = None
    closed: bool = False
    probes: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # numbers for probe calls
    waited_s: float = 0.0  # for the main answer, which the gateway cannot shorten

    @property
    def key_digest(self) -> str:
        """Of the key shown; never logged."""
        return self.client.digest

    def upstream_headers(self, call: str = "") -> dict[str, str]:
        """What the engine is told of the request. `call` sets probes' ids apart: each names one request."""
        return {"x-request-id": self.request_id + call, **self.trace}

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def token_seen(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = self.elapsed_s()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - since

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Time within `waiting` in which the gateway, not the engine's answer, kept the client waiting."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s -= time.perf_counter() - since


class Translation(Protocol):
    """Another API than chat, in which a client is to be answered."""

    def whole(self, body: bytes) -> bytes:
        """A completion in its terms."""

    def pieces(self, data: bytes) -> bytes:
        """Frames of a stream in its terms."""

    def last(self, data: bytes) -> bytes:
        """The last frame of a stream, and what else ends one there."""

    def failure(self, failure: ErrorAnswer) -> bytes:
        """An error that ends a stream."""


class Wire:
    """The way back to the client: one whole response, or frames of a stream.

    translation: of what is written in terms of chat; None for a client of chat.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, on_last: Callable[[int], Awaitable[None]]
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._on_last = on_last  # before the last byte: a client that has its answer finds it counted
        self.streaming = False
        self.translation: Translation | None = None
        self.headers: dict[str, str] = {}  # of every answer: what is left to the client

    async def respond(self, response: Response) -> None:
        await self._on_last(response.status_code)
        if self.translation is not None and response.status_code == 200:
            kept = {name: value for name, value in response.headers.items() if name != "content-length"}
            response = Response(self.translation.whole(bytes(response.body)), 200, kept)
        response.headers.update(self.headers)
        head = {"status": response.status_code, "headers": response.raw_headers}
        await self._send({"type": "http.response.start", **head})
        async for piece in pieces_of(response.body):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def start(self, headers: dict[str, str] | None = None) -> None:
        """Sends a stream's headers; the engine has accepted the request by now."""
        extra = [
            (name.encode(), value.encode("latin-1"))
            for name, value in (self.headers | (headers or {})).items()
        ]
        self.streaming = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_SSE_HEADERS, *extra]})

    async def write(self, data: bytes) -> None:
        if self.translation is not None:
            data = self.translation.pieces(data)
        async for piece in pieces_of(data):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, last: bytes) -> None:
        """The stream's last frame."""
        if self.translation is not None:
            last = self.translation.last(last)
        await self._finish(last)

    async def _finish(self, last: bytes) -> None:
        await self._on_last(200)
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def fail(self, failure: ErrorAnswer) -> None:
        """An envelope with its status, or an error frame and [DONE] where the stream is already under way."""
        if not self.streaming:
            await self.respond(failure.response())
            return
        error: JSON = failure.envelope()
        await self._finish(self.translation.failure(failure) if self.translation else frame(error) + DONE)


class HeldWire:
    """A stream that is kept back until it has been judged; one of more than `limit` bytes goes out as it
    comes. `held` says whether all of it is still here.
    """

    def __init__(self, wire: Wire, limit: int = MAX_HELD_BYTES) -> None:
        self._wire, self._limit = wire, limit
        self._kept = bytearray()
        self.streaming = False
        self.held = True

    async def start(self, headers: dict[str, str] | None = None) -> None:
        self.streaming = True

    async def write(self, data: bytes) -> None:
        if not self.held:
            await self._wire.write(data)
            return
        self._kept += data
        if len(self._kept) > self._limit:
            await self.release()

    @property
    def kept(self) -> bytes:
        """The frames that are held."""
        return bytes(self._kept)

    def replace(self, data: bytes) -> None:
        """Other frames in place of those that are held."""
        self._kept = bytearray(data)

    async def release(self, headers: dict[str, str] | None = None) -> None:
        """Sends what is held; what follows goes out at once."""
        if self.held:
            self.held = False
            await self._wire.start(headers)
            await self._wire.write(self.kept)
            self._kept.clear()

    async def end(self, last: bytes) -> None:
        await self.release()
        await self._wire.end(last)


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; cancels it, and all it started, when the client goes. Raises ClientLeft then."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
