"""Anthropic's API: passed through within the limits of chat, and each answer marked as not judged."""

import json
from typing import Any

import pytest

from tests.server.conftest import Running, picture, serving
from tests.server.fake_upstream import BASE, FakeUpstream

JSON = dict[str, Any]
ROUTE = "/v1/messages"
MESSAGE = b'{"id":"msg_1", "type":"message", "content":[{"type":"text","text":"blue"}]}'
EVENTS = b'event: message_start\ndata: {"type": "message_start"}\n\nevent: message_stop\ndata: {}\n\n'


def asked(source: JSON | None = None, **fields: Any) -> JSON:
    """A question about a picture."""
    kind, _, data = picture().removeprefix("data:").partition(";base64,")
    shown = {"type": "image", "source": source or {"type": "base64", "media_type": kind, "data": data}}
    content = [shown, {"type": "text", "text": "What colour is the shape?"}]
    return {"model": BASE, "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}


async def test_an_answer_goes_through_and_says_that_it_was_not_judged(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    raw = json.dumps(asked(), indent=2).encode()
    answer = await running_gateway.post(raw, ROUTE)
    assert (answer.status, answer.body, upstream.raw) == (200, MESSAGE, [raw])
    assert answer.headers["x-modint-verdict"] == "skipped"
    assert answer.headers["x-modint-reason"] == "unsupported_route"
    labels = {"model": BASE, "adapter": "none"}
    assert running_gateway.value("modint_probe_skipped_total", model=BASE, reason="unsupported_route") == 1
    assert running_gateway.value("modint_requests_total", **labels, route="messages", outcome="ok") == 1


async def test_a_stream_goes_through_as_it_comes(running_gateway: Running, upstream: FakeUpstream) -> None:
    upstream.further[ROUTE] = ("text/event-stream; charset=utf-8", EVENTS)
    answer = await running_gateway.post(asked(stream=True), ROUTE)
    assert (answer.body, answer.headers["x-modint-reason"]) == (EVENTS, "unsupported_route")


async def test_tokens_are_counted_without_a_verdict(running_gateway: Running, upstream: FakeUpstream) -> None:
    upstream.further["/v1/messages/count_tokens"] = ("application/json", b'{"input_tokens":9}')
    answer = await running_gateway.post(asked(), "/v1/messages/count_tokens")
    assert (answer.status, answer.json) == (200, {"input_tokens": 9})
    assert "x-modint-verdict" not in answer.headers


async def test_who_opts_out_is_told_so_and_the_engine_sees_nothing_of_ours(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    body = asked(modint={"mode": "off"}, cache_salt="x", vllm_xargs={"a": 1})
    answer = await running_gateway.post(body, ROUTE)
    assert answer.headers["x-modint-reason"] == "opted_out"
    assert json.loads(upstream.raw[0]) == asked()


async def test_with_the_guard_off_no_verdict_is_given(upstream: FakeUpstream) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    async with serving(upstream.url, guard="off") as gateway:
        answer = await gateway.post(asked(), ROUTE)
    assert (answer.status, "x-modint-verdict" in answer.headers) == (200, False)


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({"type": "url", "url": "http://169.254.169.254/latest"}, 400, "remote_image_refused"),
        ({"type": "url", "url": "file:///etc/passwd"}, 400, "remote_image_refused"),
        ({"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}, 400, "invalid_image"),
        ({"data": picture(size=(11, 10)).partition(",")[2]}, 413, "image_too_large"),
    ],
)
@pytest.mark.parametrize("inside", ["message", "tool_result"])
async def test_pictures_are_checked_wherever_they_stand(
    upstream: FakeUpstream, source: JSON, status: int, code: str, inside: str
) -> None:
    body = asked(source)
    if inside == "tool_result":
        content = body["messages"][0]["content"]
        body["messages"][0]["content"] = [{"type": "tool_result", "tool_use_id": "t", "content": content}]
    async with serving(upstream.url, max_image_pixels=100) as gateway:
        upstream.forget()
        answer = await gateway.post(body, ROUTE)
    assert (answer.status, answer.error["code"], upstream.raw) == (status, code, [])


async def test_a_key_may_come_as_anthropics_clients_send_it(upstream: FakeUpstream) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    async with serving(upstream.url, api_keys=("hush",)) as gateway:
        assert (await gateway.post(asked(), ROUTE, x_api_key="hush")).status == 200
        assert (await gateway.post(asked(), ROUTE, x_api_key="loud")).status == 401
    assert all("hush" not in head.values() for head in upstream.heads)


async def test_an_engine_without_the_route_says_so(running_gateway: Running) -> None:
    answer = await running_gateway.post(asked(), ROUTE)
    assert (answer.status, answer.error["code"]) == (404, "unknown_route")
