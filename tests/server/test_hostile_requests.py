"""Requests that mean harm: what of them reaches the engine, and what their sender is told."""

import asyncio
import json
from typing import Any

import pytest

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
