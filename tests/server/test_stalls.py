"""No body keeps the other requests waiting: the loop goes on, and the work on a body ends."""

import asyncio
import base64
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modint_guard import Guard
from modint_server.errors import unavailable
from modint_server.request.workers import Workers
from tests.server import livez
from tests.server.conftest import Running, chat, serving, with_image
from tests.server.fake_upstream import Answer, FakeUpstream, lengthy, misled, running
from tests.server.soak import CHAT, Gateway, gateway_process

JSON = dict[str, Any]


def large(width: int = 4472, height: int = 4472) -> str:
    """A data URL of a black picture: 20 million pixels in 3 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def about(text: str, *, picture: bool = True, **modint: Any) -> bytes:
    """A request with this text in place of the caption."""
    body = chat(modint=modint)
    content = body["messages"][0]["content"]
    content[1]["text"] = text
    body["messages"][0]["content"] = content if picture else content[1:]
    return json.dumps(body).encode()


async def longest_wait(gateway: Running, *bodies: bytes, path: str = CHAT) -> float:
    """The most work in seconds that the loop's thread did between two /livez while these bodies were sent.

    It is counted as CPU time: on a busy machine the thread itself may have to wait.
    """
    sent = asyncio.gather(*(gateway.post(body, path) for body in bodies))
    longest = 0.0
    while not sent.done():
        began = time.thread_time()
        assert (await gateway.get("/livez")).status == 200
        await asyncio.sleep(0.005)
        longest = max(longest, time.thread_time() - began)
    assert {reply.status for reply in await sent} <= {200, 400, 413}
    return longest


BODIES = {
    "a context that is nearly there": about("a" * 600_000, context="ab" + "a" * 300_000),
    "many short lines": about("- a\n" * 250_000, picture=False),
    "many short lines about a picture": about("- a\n" * 250_000),
    "many empty lists": b'{"model":"m","messages":[' + b"[]," * 3_000_000 + b"[]]}",
    "many sentences": about("It is so. " * 100_000),
    "many tags": json.dumps(
        {**chat(), "messages": [{"role": "system", "content": "<context>" * 40_000}, *chat()["messages"]]}
    ).encode(),
}


@pytest.mark.parametrize("name", BODIES)
async def test_no_body_stalls_the_loop(upstream: FakeUpstream, no_garbage: None, name: str) -> None:
    async with serving(upstream.url, image_timeout_s=60) as gateway:
        assert await longest_wait(gateway, BODIES[name]) < 0.3


VALUES = json.dumps({f"value {n}": "" for n in range(5_000)})  # nothing is said in them, but all are read
CALLS = [{"function": {"name": "f", "arguments": values}} for values in (*[VALUES] * 9, '{"colour": "blue"}')]
GIVEN = {
    "a record": chat(answer=json.dumps([*range(14_000)])),
    "a record in a forced form": chat(
        answer=json.dumps([*range(14_000)]), response_format={"type": "json_object"}
    ),
    "calls": chat(
        answer={"tool_calls": CALLS},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    ),
}


@pytest.mark.parametrize("name", GIVEN)
async def test_no_answer_from_elsewhere_stalls_the_loop(name: str) -> None:
    fake = FakeUpstream(misled, scores=True)
    fake.model_list = fake.model_list[:1]
    async with running(fake), serving(fake.url) as gateway:
        assert await longest_wait(gateway, json.dumps(GIVEN[name]).encode(), path="/v1/guard/check") < 0.05


def long_of(tokens: int) -> Callable[[JSON], Answer]:
    """An answer of so many words, which the engine can score, with 20 alternatives each."""
    words = ["It", *(f" is{n}" for n in range(tokens - 1))]
    tops = tuple({word: 0.8} | {f" other{n}": 0.01 for n in range(19)} for word in words)
    first, whole = Answer("It", tops=tops[:1]), Answer("".join(words), tops=tops)
    return lambda body: whole if body["max_tokens"] == 4 or "prompt_logprobs" in body else first


SHOWN = {"logprobs": True, "top_logprobs": 20}
LONG, FOUR = lengthy(16_000), lengthy(16_000, count=4)
ANSWERS: dict[str, tuple[Callable[[JSON], Answer], JSON]] = {
    "16,000 tokens": (lambda body: LONG if body["max_tokens"] == 4 else misled(body), {}),
    "16,000 tokens, shown": (lambda body: LONG if body["max_tokens"] == 4 else misled(body), SHOWN),
    "16,000 tokens four times": (
        lambda body: FOUR if body["max_tokens"] == 4 else misled(body),
        {"n": 4, **SHOWN},
    ),
    "500 tokens, scored as a whole": (long_of(500), {}),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_no_answer_with_alternatives_stalls_the_loop(name: str) -> None:
    script, asked = ANSWERS[name]
    body = json.dumps(chat(modint={"relevant": "image", "deadline_s": 60}, **asked)).encode()
    settings = {"null_checkup": "off", "image_timeout_s": "60", "teacher_forcing": "on"}
    async with (
        running(FakeUpstream(script, scores=True)) as upstream,
        gateway_process(upstream.url, **settings) as gateway,
    ):
        waits = [await longest_wait_in_a_process(gateway, body)]
        while min(waits) >= 0.08 and len(waits) < 3:  # some may meet a busy machine
            waits.append(await longest_wait_in_a_process(gateway, body))
    assert min(waits) < 0.08, waits


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_an_answer_is_served_even_if_no_thread_comes_free_to_read_it(
    mode: str, upstream: FakeUpstream, no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = lambda body: LONG if body["max_tokens"] == 4 else misled(body)
    run = Workers.run

    async def busy(self: Workers, key_digest: str, work: Callable[[], Any]) -> Any:
        if upstream.calls:  # the engine was asked, so that this is about its answer
            raise unavailable("the answer could not be read in time", "image_timeout")
        return await run(self, key_digest, work)

    monkeypatch.setattr(Workers, "run", busy)
    body = json.dumps(chat(modint={"mode": mode}, **SHOWN)).encode()
    async with serving(upstream.url, null_checkup="off") as gateway:
        upstream.calls.clear()
        reply = await gateway.post(body)
        upstream.calls.clear()
        assert await longest_wait(gateway, body) < 0.1  # the loop does not read it either
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, " word0" * 16_000)


async def longest_wait_in_a_process(gateway: Gateway, body: bytes) -> float:
    """The most work in seconds that all threads of the gateway did while one /livez waited."""
    host, port = gateway.url.removeprefix("http://").split(":")
    command = (sys.executable, str(Path(livez.__file__)), host, port, str(gateway.pid))
    pipe = asyncio.subprocess.PIPE
    asking = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    await asyncio.sleep(0.2)  # it has begun
    headers = {"content-type": "application/json"}
    async with gateway.http.post(gateway.url + CHAT, data=body, headers=headers) as response:
        await response.read()
        assert response.headers["x-modint-verdict"] in ("pass", "flagged")
    told, _ = await asking.communicate(b"")
    return float(told)


def test_many_parts_are_read_in_linear_time() -> None:
    def seconds(parts: int) -> float:
        """The shorter of two readings: what else runs here makes some of them longer, and none shorter."""
        body = chat()
        content = body["messages"][0]["content"]
        body["messages"][0]["content"] = [content[0], *[content[1]] * parts, content[2]]
        readings = []
        for _ in range(2):
            began = time.process_time()
            assert len(Guard().plan(body).views) == 3
            readings.append(time.process_time() - began)
        return min(readings)

    assert seconds(12_800) < 10 * seconds(1_600)  # eight times as many parts; in quadratic time 64 times


async def test_pictures_that_are_small_one_by_one_are_counted_together(running_gateway: Running) -> None:
    body = with_image({"url": large()})
    body["messages"][0]["content"] = [body["messages"][0]["content"][0]] * 4 + body["messages"][0]["content"]
    reply = await running_gateway.post(body)
    assert (reply.status, reply.error["code"]) == (413, "image_too_large")
    reply = await running_gateway.post(body, x_modint_mode="off")
    assert reply.status == 413


async def test_a_probe_that_would_draw_a_huge_picture_does_not_fit(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    body = with_image({"url": large()}) | {"modint": {"relevant": "image", "probes": ["noise", "benign"]}}
    report = (await running_gateway.post(body)).json["modint"]
    assert [probe["name"] for probe in report["probes"]] == ["no_context", "neutral_image", "prior"]
    assert sum("does not fit" in note for note in report["notes"]) == 2
    assert max(map(len, upstream.raw)) < 1_000_000


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (6, 6), (3, 100)])
@pytest.mark.parametrize("probe", ["irrelevant_image", "screenshot", "noise", "benign", "black"])
async def test_a_tiny_picture_fails_no_probe(
    running_gateway: Running, probe: str, size: tuple[int, int]
) -> None:
    body = with_image({"url": large(*size)}) | {"modint": {"relevant": "image", "probes": [probe]}}
    assert (await running_gateway.post(body)).status == 200


async def test_pictures_of_one_key_leave_a_thread_for_another(upstream: FakeUpstream) -> None:
    one = with_image({"url": large()})
    one["messages"][0]["content"] = [one["messages"][0]["content"][0]] * 3 + one["messages"][0]["content"][1:]
    async with serving(upstream.url, api_keys="key-one,key-two", image_timeout_s=60) as gateway:
        attacks = [
            asyncio.ensure_future(gateway.post(one, authorization="Bearer key-one")) for _ in range(30)
        ]
        await asyncio.sleep(0.2)
        reply = await gateway.post(chat(), authorization="Bearer key-two")
        assert reply.status == 200
        assert sum(attack.done() for attack in attacks) < len(attacks) / 2
        for attack in attacks:
            attack.cancel()


async def test_pictures_that_are_not_read_in_time_may_be_sent_again(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, image_timeout_s=0.0001) as gateway:
        reply = await gateway.post(chat())
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "image_timeout", "1")
