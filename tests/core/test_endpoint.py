"""The endpoint client against a real server on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from modint_guard.endpoint import KEEP_IDLE_S, Endpoint
from modint_guard.errors import EndpointError, EndpointTimeout, EndpointUnreachable
from modint_guard.types import JSON


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    kind = body.get("kind")
    if kind == "slow":
        await asyncio.sleep(30)
    assert request.transport is not None
    if kind == "broken":
        request.transport.close()
    if kind == "html":
        return web.Response(text="<html>gateway</html>", status=502)
    if kind == "text":
        return web.Response(text="fine")
    if kind == "error":
        return web.json_response({"error": {"message": "no such model", "code": 404}}, status=404)
    if kind == "string":
        return web.json_response({"error": "Unauthorized"}, status=401)
    client = request.transport.get_extra_info("peername")  # empty for a Unix socket
    said = {"got": body, "key": request.headers.get("authorization"), "port": client[1] if client else None}
    return web.json_response(said)


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "base"}, {"id": "lora", "parent": "base"}]})


@asynccontextmanager
async def server(uds: str | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site: Any = web.UnixSite(runner, uds) if uds else web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = 0 if uds else runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
async def test_a_body_arrives_with_the_key_whatever_the_urls_tail(tail: str) -> None:
    async with server() as url, Endpoint(url + tail, api_key="secret") as endpoint:
        answered = await endpoint.complete({"a": "ä"})
        assert (answered["got"], answered["key"]) == ({"a": "ä"}, "Bearer secret")
        assert [model["id"] for model in await endpoint.models()] == ["base", "lora"]


async def test_without_a_key_none_is_sent() -> None:
    async with server() as url, Endpoint(url) as endpoint:
        assert (await endpoint.complete({}))["key"] is None


async def test_a_unix_socket_is_dialled(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    async with server(path), Endpoint("http://engine", uds=path) as endpoint:
        assert (await endpoint.complete({"a": 1}))["got"] == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("error", 404, "answered 404: no such model"),
        ("string", 401, "answered 401: Unauthorized"),
        ("html", 502, "answered 502: <html>"),
        ("text", 200, "not with a JSON object"),
    ],
)
async def test_an_answer_that_is_none_carries_status_and_body(kind: str, status: int, said: str) -> None:
    async with server() as url, Endpoint(url) as endpoint:
        with pytest.raises(EndpointError, match=said) as caught:
            await endpoint.complete({"kind": kind})
    assert caught.value.status == status
    assert caught.value.body


async def test_a_slow_server_is_a_timeout() -> None:
    async with server() as url, Endpoint(url, timeout_s=0.1) as endpoint:
        with pytest.raises(EndpointTimeout, match=r"within 0\.1 seconds"):
            await endpoint.complete({"kind": "slow"})


async def test_a_broken_connection_and_a_missing_server_are_unreachable(tmp_path: Path) -> None:
    async with server() as url, Endpoint(url) as endpoint:
        with pytest.raises(EndpointUnreachable):
            await endpoint.complete({"kind": "broken"})
    async with Endpoint(url) as endpoint:
        with pytest.raises(EndpointUnreachable, match="is the server running"):
            await endpoint.complete({})
    async with Endpoint("http://engine", uds=str(tmp_path / "none.sock")) as endpoint:
        with pytest.raises(EndpointUnreachable):
            await endpoint.complete({})


async def test_a_closed_client_says_so() -> None:
    body: JSON = {}
    with pytest.raises(EndpointUnreachable, match="async with"):
        await Endpoint("http://127.0.0.1:1").complete(body)


async def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    """The server may be closing it at that moment."""
    async with server() as url, Endpoint(url) as endpoint:
        ports = [(await endpoint.complete({}))["port"] for _ in range(2)]
        await asyncio.sleep(KEEP_IDLE_S + 0.3)
        ports.append((await endpoint.complete({}))["port"])
    assert ports[0] == ports[1] != ports[2]
