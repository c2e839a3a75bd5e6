"""Anthropic's API: judged by way of chat, or passed through within the limits of chat."""

import json
from pathlib import Path
from typing import Any

import pytest

from modint_guard.chat.anthropic import chat_of as as_chat
from tests.server.conftest import Running, picture, serving
from tests.server.fake_upstream import BASE, Answer, FakeUpstream, is_main

JSON = dict[str, Any]
ROUTE = "/v1/messages"
MESSAGE = b'{"id":"msg_1", "type":"message", "content":[{"type":"text","text":"blue"}]}'
EVENTS = b'event: message_start\ndata: {"type": "message_start"}\n\nevent: message_stop\ndata: {}\n\n'


def asked(source: JSON | None = None, **fields: Any) -> JSON:
    """A question about a picture, with a caption that lies."""
    kind, _, data = picture().removeprefix("data:").partition(";base64,")
    shown = {"type": "image", "source": source or {"type": "base64", "media_type": kind, "data": data}}
    texts = ("The caption says that the shape is blue.", "What colour is the shape?")
    content = [shown, *({"type": "text", "text": text} for text in texts)]
    return {"model": BASE, "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}


def words(**fields: Any) -> JSON:
    """A question without a picture, which is passed through."""
    return {**asked(), "messages": [{"role": "user", "content": "What is two plus three?"}], **fields}


async def test_an_answer_is_judged_by_way_of_chat(running_gateway: Running, upstream: FakeUpstream) -> None:
    answer = await running_gateway.post(asked(modint={"relevant": "image"}), ROUTE)
    modint = answer.json.pop("modint")
    assert (modint["verdict"], modint["cause"]) == ("flagged", "text")
    assert answer.headers["x-modint-verdict"] == "flagged"
    assert answer.json == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": BASE,
        "content": [{"type": "text", "text": "blue"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 40, "output_tokens": 2},
        "modint": modint,
    }
    assert len(upstream.calls) == 4
    main = upstream.calls[0]
    assert main["messages"] == as_chat(asked())["messages"]
    assert (main["max_tokens"], main["max_completion_tokens"], main["logprobs"]) == (4, 4, True)
    labels = {"model": BASE, "adapter": "none", "relevant": "image"}
    assert running_gateway.value("modint_verdicts_total", **labels, verdict="flagged", cause="text") == 1
    assert running_gateway.value("modint_tokens_total", model=BASE, adapter="none", direction="input") == 40


async def test_a_stream_is_judged_and_has_the_events_of_messages(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    answer = await running_gateway.post(asked(stream=True, modint={"relevant": "image"}), ROUTE)
    events = events_of(answer.body)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert "".join(event["delta"]["text"] for event in events[2:4]) == "blue"
    assert events[5]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[5]["usage"] == {"input_tokens": 40, "output_tokens": 2}
    assert events[5]["modint"]["verdict"] == "flagged"
    assert len(upstream.calls) == 4


def events_of(body: bytes) -> list[JSON]:
    """The events of a stream, each checked to be named by its type."""
    events = []
    for text in body.decode().strip().split("\n\n"):
        name, data = text.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize("stream", [False, True])
async def test_a_flagged_message_is_corrected_as_a_chat_is(upstream: FakeUpstream, stream: bool) -> None:
    body = asked(stream=stream, modint={"relevant": "image", "action": "neutralise"})
    async with serving(upstream.url) as gateway:
        answer = await gateway.post(body, ROUTE)
    assert (answer.status, answer.headers["x-modint-action"]) == (200, "neutralise")
    if stream:
        said = [event["delta"] for event in events_of(answer.body) if event["type"] == "content_block_delta"]
        assert said == [{"type": "text_delta", "text": "red"}]
    else:
        assert answer.json["content"] == [{"type": "text", "text": "red"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage", [7, {"prompt_tokens": "many", "completion_tokens": []}, {"prompt_tokens": -1}]
)
async def test_an_odd_usage_costs_no_message(
    running_gateway: Running, upstream: FakeUpstream, usage: Any, stream: bool
) -> None:
    upstream.damage = lambda body, answer: {**answer, "usage": usage}
    answer = await running_gateway.post(asked(stream=stream, modint={"relevant": "image"}), ROUTE)
    assert answer.status == 200 and b'"text":"blue"' in answer.body
    assert b'"input_tokens":0,"output_tokens":0' in answer.body


@pytest.mark.parametrize("choices", [7, [7], [{"message": "blue"}], [{"delta": 7}], {"a": 1}])
async def test_an_answer_that_is_no_chat_is_an_error_of_the_engine(
    running_gateway: Running, upstream: FakeUpstream, choices: Any
) -> None:
    upstream.damage = lambda body, answer: {**answer, "choices": choices}
    whole = await running_gateway.post(asked(modint={"relevant": "image"}), ROUTE)
    is_empty = choices == [{"delta": 7}]  # a message that says nothing
    assert (whole.status, "error" in whole.json) == ((200, False) if is_empty else (502, True))
    stream = await running_gateway.post(asked(stream=True, modint={"relevant": "image"}), ROUTE)
    assert stream.status in (200, 502) and b"internal_error" not in stream.body


@pytest.mark.parametrize("fields", [{"messages": 7}, {"messages": [7]}, {"system": 7}, {"system": [7]}])
async def test_a_request_of_another_shape_is_the_engines_to_refuse(
    running_gateway: Running, upstream: FakeUpstream, fields: JSON
) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    answer = await running_gateway.post(asked(**fields), ROUTE)
    assert answer.status == 200


async def test_an_error_within_a_stream_is_an_event_of_messages(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: Answer(
        "blue", {"blue": 0.9}, fault="error frame" if is_main(body) else None
    )
    async with serving(upstream.url) as gateway:
        answer = await gateway.post(asked(stream=True), ROUTE)
    last = events_of(answer.body)[-1]
    assert last["type"] == "error"
    assert set(last["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"name": "a", "input_schema": {}}]}, "tool_calls"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "structured_output"),
        ({"thinking": {"type": "disabled"}}, "unsupported_part"),
        ({"max_tokens": None}, "unsupported_part"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "unsupported_part"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "unsupported_part",
        ),
        ({"messages": []}, "unsupported_part"),
        ({"messages": "hello"}, "unsupported_part"),
        ({"messages": [{"role": "user", "content": "What is two plus three?"}]}, "no_image"),
    ],
)
async def test_what_is_not_judged_goes_through_as_it_is(
    running_gateway: Running, upstream: FakeUpstream, fields: JSON, reason: str
) -> None:
    upstream.further[ROUTE] = ("application/json", MESSAGE)
    raw = json.dumps(asked(**fields), indent=2).encode()
    answer = await running_gateway.post(raw, ROUTE)
    assert (answer.status, answer.body, upstream.raw) == (200, MESSAGE, [raw])
    assert (answer.headers["x-modint-verdict"], answer.headers["x-modint-reason"]) == ("skipped", reason)
    assert running_gateway.value("modint_probe_skipped_total", model=BASE, reason=reason) == 1
    labels = {"model": BASE, "adapter": "none"}
    assert running_gateway.value("modint_requests_total", **labels, route="messages", outcome="ok") == 1


async def test_a_stream_goes_through_as_it_comes(running_gateway: Running, upstream: FakeUpstream) -> None:
    upstream.further[ROUTE] = ("text/event-stream; charset=utf-8", EVENTS)
    answer = await running_gateway.post(words(stream=True), ROUTE)
    assert (answer.body, answer.headers["x-modint-reason"]) == (EVENTS, "no_image")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_refuses_what_we_add_is_asked_once_more(
    upstream: FakeUpstream, stream: bool
) -> None:
    async with serving(upstream.url) as gateway:
        upstream.max_logprobs = 0
        answer = await gateway.post(asked(stream=stream), ROUTE)
    assert answer.status == 200
    assert b'"blue"' in answer.body or b'"text":"bl"' in answer.body
    assert b"upstream_error" in answer.body


async def test_tokens_of_messages_count_for_a_limited_key(upstream: FakeUpstream, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("[[key]]\nname = 'a'\nkey = 'hush'\ntokens_per_minute = 1000\n", "utf-8")
    usage = {"input_tokens": 30, "output_tokens": 1}
    start, last = (
        {"type": "message_start", "message": {"usage": usage}},
        {"type": "message_delta", "usage": {"output_tokens": 12}},
    )
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, last))
    async with serving(upstream.url, api_keys_file=file) as gateway:
        left = []
        for kind, data, body in (
            ("application/json", json.dumps({"usage": usage}).encode(), words()),
            ("text/event-stream", stream, words(stream=True)),
            ("", b"", asked()),
            ("application/json", b"{}", words()),
        ):
            upstream.further = {ROUTE: (kind, data)} if kind else {}
            answer = await gateway.post(body, ROUTE, x_api_key="hush")
            left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
    assert left == [1000, 969, 927, 885]


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
    answer = await running_gateway.post(words(), ROUTE)
    assert (answer.status, answer.error["code"]) == (404, "unknown_route")
