"""Requests that mean harm: what of them reaches the engine, and what their sender is told."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import h11
import pytest
import uvicorn
from prometheus_client import generate_latest

from modint_guard import Guard
from modint_guard.errors import RequestError
from modint_server.connections import BoundedConnection
from modint_server.request.intake import read_document
from modint_server.routes.pages import RESTS, Page
from modint_server.settings import load_settings
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import BASE, FakeUpstream

JSON = dict[str, Any]


@pytest.mark.parametrize("field", ["ec_transfer_params", "request_id", "kv_transfer_params", "cache_salt"])
async def test_fields_that_the_engine_trusts_reach_neither_request_nor_probes(
    running_gateway: Running, upstream: FakeUpstream, field: str
) -> None:
    assert (await running_gateway.post(chat(**{field: "x"}))).status == 200
    assert (
        await running_gateway.post({"model": BASE, "prompt": "two and", field: "x"}, "/v1/completions")
    ).status == 200
    assert not any(field.encode() in raw for raw in upstream.raw)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": ["a"] * 129}, "over_limit"),
        ({"prompt": ["a"] * 20, "n": 16}, "over_limit"),
        ({"prompt": "a", "best_of": 1000}, "over_limit"),
        ({"prompt_embeds": "AAAA"}, "embeds_refused"),
    ],
)
async def test_a_plain_completion_asks_for_a_bounded_number_of_answers(
    running_gateway: Running, upstream: FakeUpstream, fields: JSON, code: str
) -> None:
    reply = await running_gateway.post({"model": BASE, **fields}, "/v1/completions")
    assert (reply.status, reply.error["code"], upstream.raw) == (400, code, [])


def test_a_picture_whose_part_has_an_odd_text_fails_nothing() -> None:
    body = chat()
    odd = {**body["messages"][0]["content"][0], "text": [None]}
    body["messages"].insert(0, {"role": "developer", "content": [odd]})
    assert Guard().plan(body).skip is None


async def test_a_prompt_of_many_tokens_is_one_prompt(running_gateway: Running) -> None:
    body = {"model": BASE, "prompt": list(range(1000))}
    assert (await running_gateway.post(body, "/v1/completions")).status == 200


@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_that_is_still_sending_sees_the_413(upstream: FakeUpstream, declared: bool) -> None:
    """As plain clients do: the whole body first, and only then the answer."""
    size = 1_500_000
    async with serving(upstream.url, max_body_bytes=1_000_000) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        length = f"content-length: {size}" if declared else "transfer-encoding: chunked"
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode())
        for _ in range(size // 100_000):
            writer.write(b"x" * 100_000 if declared else b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"" if declared else b"0\r\n\r\n")
        reply = await reader.read()
        writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413") and json.loads(body)["error"]["code"] == "body_too_large"


async def reading(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def bounded(
    connection: type[BoundedConnection] = BoundedConnection, app: Any = reading
) -> AsyncIterator[int]:
    """A server whose connections are bounded as those of `serve`; the port."""
    config = uvicorn.Config(
        app, http=connection, port=0, lifespan="off", log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def answer_to(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes the connection, or ends its first answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        reply = await reader.read(200)
        writer.close()
        return reply
    writer.close()
    return b""


async def test_headers_without_end_are_refused() -> None:
    async with bounded() as port:
        head = b"GET / HTTP/1.1\r\nhost: x\r\n"
        assert (await answer_to(port, head, b"\r\n")).startswith(b"HTTP/1.1 200")
        filler = [b"x-%d: %s\r\n" % (n, b"y" * 8000) for n in range(12)]
        assert b"200 OK" not in await answer_to(port, head, *filler, b"\r\n")


async def test_a_long_body_is_no_long_head() -> None:
    async with bounded() as port:
        post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
        assert (await answer_to(port, post)).startswith(b"HTTP/1.1 200")


async def test_bytes_behind_a_long_body_are_the_next_request() -> None:
    async with bounded() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + b"x" * 900_000
        writer.write(post + post + b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert answers.count(b"HTTP/1.1 200") == 3


async def test_a_long_body_makes_few_events() -> None:
    events: list[Any] = []

    class Counted(BoundedConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._read: Any = self.conn.next_event
            self.conn.next_event = self._noted  # type: ignore[method-assign]

        def _noted(self) -> Any:
            events.append(self._read())
            return events[-1]

    async with bounded(Counted) as port:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n"
        assert (await answer_to(port, head, *[b"x" * 2500] * 20)).startswith(b"HTTP/1.1 200")
    assert sum(isinstance(event, h11.Data) for event in events) == 1


async def test_of_a_body_that_nobody_reads_little_is_taken() -> None:
    waiting: list[Any] = []

    async def idle(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        waiting.append(receive)
        await asyncio.sleep(60)

    async with bounded(app=idle) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 90000000\r\n\r\n" + b"x" * 80_000_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 1)
        body = waiting[0].__self__.body
        writer.transport.abort()
    assert len(body) < 2**21


async def test_long_headers_that_come_at_once_are_refused() -> None:
    async with bounded() as port:
        filler = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 8000) for n in range(12))
        refusal = await answer_to(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + filler + b"\r\n")
        assert b"200 OK" not in refusal


async def test_a_body_in_many_short_chunks_keeps_no_other_request_waiting() -> None:
    async with bounded() as port:
        post = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000
        slow = asyncio.create_task(answer_to(port, post + b"0\r\n\r\n"))
        await asyncio.sleep(0)
        assert (await answer_to(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert not slow.done()
        assert (await slow).startswith(b"HTTP/1.1 200")


class Hasty(BoundedConnection):
    """A connection with little patience."""

    head_s = 0.2


async def test_headers_that_come_too_late_end_the_connection() -> None:
    async with bounded(Hasty) as port, asyncio.timeout(5):
        assert await answer_to(port, b"GET / HTTP/1.1\r\nhost") == b""
        assert await answer_to(port) == b""


class Few(BoundedConnection):
    """A connection of a server that takes three."""

    max_connections = 3


async def test_of_too_many_connections_the_last_is_closed_and_those_before_are_answered() -> None:
    async with bounded(Few) as port, asyncio.timeout(5):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await answer_to(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        reader, writer = held[0]
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await reader.read(200)).startswith(b"HTTP/1.1 200")
        for _, writer in held:
            writer.close()


async def test_pages_of_metrics_may_ask_for_a_key(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys="key-one", metrics_need_key=True) as gateway:
        for path in ("/metrics", "/engine/metrics"):
            assert (await gateway.get(path)).status == 401
            assert (await gateway.get(path, authorization="Bearer key-one")).status == 200


async def test_many_who_ask_for_the_engines_page_cost_it_two(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    pages = await asyncio.gather(*(running_gateway.get("/engine/metrics") for _ in range(50)))
    assert {page.status for page in pages} == {200}
    assert upstream.paths.count("/metrics") < 10


async def test_pages_that_are_asked_for_all_the_time_are_made_a_fifth_of_it() -> None:
    made, ends = list[float](), time.monotonic() + 1.0

    async def make() -> bytes:
        made.append(time.monotonic())
        await asyncio.sleep(0.02)
        return b"page"

    page = Page(make, rests=RESTS)

    async def ask() -> None:
        while time.monotonic() < ends:
            assert await page.get() == b"page"

    await asyncio.gather(*(ask() for _ in range(20)))
    assert 2 <= len(made) <= 12
    assert min(later - earlier for earlier, later in itertools.pairwise(made)) >= 0.09


async def test_many_who_ask_for_the_metrics_of_many_adapters_keep_nobody_waiting(
    upstream: FakeUpstream, no_garbage: None
) -> None:
    names = [f"adapter-{n}" for n in range(64)]
    upstream.model_list = [*upstream.model_list[:1], *({"id": name, "parent": BASE} for name in names)]
    async with serving(upstream.url) as gateway:
        began = time.thread_time()
        generate_latest(gateway.registry)
        cost = time.thread_time() - began
        asked = asyncio.gather(*(gateway.get("/metrics") for _ in range(20)))
        longest = 0.0
        while not asked.done():
            began = time.thread_time()
            assert (await gateway.get("/livez")).status == 200
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - began)
        pages = {page.body for page in await asked}
    assert len(pages) <= 2 and all(b"adapter-63" in page for page in pages)
    assert longest < cost / 2


MEDIA = b'"data:image/png;base64,%s"' % (b"AAAA" * 100)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"[]," * 60 + b"[]]}",
        b'{"a": %s, "b": [' % MEDIA + b"1," * 120 + b"1]}",
        b'{"a": [' + b"1," * 120 + b"1], " + b'"b": %s, "c": %s}' % (MEDIA, MEDIA),
        b'{"a": ";base64,", "b": [' + b"1," * 120 + b"1]}",
        b"[" * 120 + b'";base64,',
        b'{"a": ["' + b";base64," * 100 + b'", ' + b"1," * 120 + b"1]}",
        b'{"a": [' + b'";base64,", ' * 100 + b"1," * 10 + b"1]}",
    ],
)
def test_a_body_of_many_values_is_refused_wherever_it_holds_media(body: bytes) -> None:
    settings = load_settings(upstream_url="http://engine", max_json_values=100)
    with pytest.raises(RequestError) as caught:
        read_document(body, settings)
    assert caught.value.code == "too_many_values"


def test_media_are_no_values() -> None:
    settings = load_settings(upstream_url="http://engine", max_json_values=10)
    body = b'{"a": [%s, %s, "x;base64,%s"]}' % (MEDIA, MEDIA, b"," * 100)
    assert len(read_document(body, settings).body["a"]) == 3


@pytest.mark.parametrize(("depth", "status"), [(240, 200), (260, 400)])
async def test_a_body_as_deep_as_is_allowed_can_be_written_again(
    upstream: FakeUpstream, depth: int, status: int
) -> None:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    async with serving(upstream.url, max_json_depth=250) as gateway:
        reply = await gateway.post(chat(future_field=nested, modint={"relevant": "image"}))
    assert reply.status == status
