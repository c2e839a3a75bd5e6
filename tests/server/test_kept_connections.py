"""Connections to the engine that were kept, and that it has closed meanwhile."""

import asyncio
import contextlib
from typing import Any

import aiohttp
import pytest

from modint_server.engine.upstream import Upstream

BODY = b'{"data": []}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)


class Impatient:
    """Answers one request a connection, the first `together` at once, and closes it at the second."""

    def __init__(self, together: int) -> None:
        self.connections, self.answered = 0, 0
        self._first = asyncio.Barrier(together)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = contextlib.suppress(asyncio.IncompleteReadError)  # a client may close it before
        with contextlib.closing(writer), left:
            await reader.readuntil(b"\r\n\r\n")
            if self.connections <= self._first.parties:
                await self._first.wait()
            writer.write(HEAD + BODY)
            self.answered += 1
            await reader.readuntil(b"\r\n\r\n")


async def test_a_request_survives_any_number_of_kept_connections_that_the_engine_has_closed() -> None:
    engine = Impatient(together=4)
    server = await asyncio.start_server(engine, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server, Upstream(f"http://127.0.0.1:{port}") as upstream:
        await asyncio.gather(*(upstream.models() for _ in range(4)))
        assert (engine.connections, engine.answered) == (4, 4)
        assert await upstream.models() == []
        assert (engine.connections, engine.answered) == (5, 5)


@pytest.mark.parametrize(
    "closed",
    [
        aiohttp.ClientOSError("reset by the engine"),
        aiohttp.ClientConnectionResetError("cannot write to a closing transport"),
        aiohttp.ServerDisconnectedError(),
        ConnectionResetError(),
    ],
)
async def test_however_a_kept_connection_says_that_it_is_closed_a_fresh_one_is_asked(
    closed: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await asyncio.start_server(Impatient(together=1), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server, Upstream(f"http://127.0.0.1:{port}") as upstream:

        async def refuse(*_: Any, **__: Any) -> None:
            raise closed

        monkeypatch.setattr(upstream._sessions[0], "request", refuse)
        assert await upstream.models() == []
