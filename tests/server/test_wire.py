"""What clients and balancers do on the wire: HTTP/2 offers, HTTP/1.0, HEAD, preflights, idle connections."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modint_guard.errors import ConfigError
from modint_server.settings import load_settings
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import FakeUpstream

ORIGIN = "https://chat.example.org"
ASKING = {"origin": ORIGIN, "access-control-request-method": "POST"}


@asynccontextmanager
async def connected(
    gateway: Running,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def posted(body: bytes, version: str, *headers: str) -> bytes:
    lines = (f"POST /v1/chat/completions HTTP/{version}", "Host: x", *headers, f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_the_body_behind_an_offer_of_http_2_is_read(running_gateway: Running) -> None:
    offer = (
        "Connection: Upgrade, HTTP2-Settings, close",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with connected(running_gateway) as (reader, writer):
        writer.write(posted(json.dumps(chat(modint={"relevant": "image"})).encode(), "1.1", *offer))
        answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x-modint-verdict: flagged" in answer


async def test_a_client_of_http_1_0_gets_a_stream_without_chunked_framing(running_gateway: Running) -> None:
    async with connected(running_gateway) as (reader, writer):
        writer.write(posted(json.dumps(chat(stream=True)).encode(), "1.0"))
        head, _, events = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/engine/metrics", "/v1/models", "/v1/models/tinyworld-base"]
)
async def test_routes_that_take_get_take_head(running_gateway: Running, path: str) -> None:
    async with running_gateway.http.head(running_gateway.url + path) as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_web_pages_of_any_origin_may_call(running_gateway: Running) -> None:
    http, url = running_gateway.http, running_gateway.url + "/v1/chat/completions"
    wanted = {**ASKING, "access-control-request-headers": "authorization,x-stainless-os"}
    async with http.options(url, headers=wanted) as preflight:
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    answer = await running_gateway.post(chat(), origin=ORIGIN)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-modint-verdict" in answer.headers["access-control-expose-headers"]


async def test_web_pages_may_call_a_gateway_in_a_private_network(running_gateway: Running) -> None:
    http, url = running_gateway.http, running_gateway.url + "/v1/chat/completions"
    async with http.options(
        url, headers={**ASKING, "access-control-request-private-network": "true"}
    ) as preflight:
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-private-network"] == "true"


async def test_an_empty_line_before_a_request_is_read_over(running_gateway: Running) -> None:
    body = json.dumps(chat(modint={"mode": "off"})).encode()
    async with connected(running_gateway) as (reader, writer):
        writer.write(b"\r\n" + posted(body, "1.1") + b"\r\n")
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert first.startswith(b"HTTP/1.1 200")
        writer.write(posted(body, "1.1", "Connection: close"))
        answers = await asyncio.wait_for(reader.read(), 10)
    assert answers.count(b"HTTP/1.1 200") == 1


async def test_only_the_configured_origins_may_call(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, cors_origins=(ORIGIN,)) as gateway:
        url = gateway.url + "/v1/chat/completions"
        async with gateway.http.options(url, headers=ASKING) as allowed:
            assert allowed.headers["access-control-allow-origin"] == ORIGIN
        async with gateway.http.options(url, headers={**ASKING, "origin": "https://other.org"}) as refused:
            assert refused.status == 400
            assert "access-control-allow-origin" not in refused.headers


async def test_without_origins_no_page_may_call(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, cors_origins=()) as gateway:
        url = gateway.url + "/v1/chat/completions"
        async with gateway.http.options(url, headers=ASKING) as response:
            assert response.status == 405


def test_an_origin_with_a_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODINT_CORS_ORIGINS", "https://chat.example.org/ui")
    with pytest.raises(ConfigError, match=r"cors_origins: must be \* or origins such as"):
        load_settings()
    monkeypatch.setenv("MODINT_CORS_ORIGINS", "")
    assert load_settings().cors_origins == ()


async def test_idle_connections_are_kept_as_long_as_the_setting_says(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, keep_alive_s=1) as gateway, connected(gateway) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b'{"status":"ok"}')
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_by_default_balancers_close_idle_connections_first(running_gateway: Running) -> None:
    assert running_gateway.gateway.settings.keep_alive_s > 600
