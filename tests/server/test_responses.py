"""The Responses API: judged like chat, whole and streamed, and in the official client's hands."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from modint_server.request.sse import Splitter, data_of
from tests.server.conftest import Running, picture, serving
from tests.server.fake_upstream import BASE, JSON, Answer, FakeUpstream, is_main, misled, steady
from tests.server.test_mitigation import with_policy

IMAGE = {"relevant": "image"}
OK = {"model": BASE, "adapter": "none", "route": "responses", "outcome": "ok"}


@pytest.fixture
async def gateway(upstream: FakeUpstream) -> AsyncIterator[Running]:
    upstream.responses = True
    async with serving(upstream.url) as running:
        upstream.forget()
        yield running


def asked(**fields: Any) -> JSON:
    """A question about a picture, with a caption that lies."""
    content = [
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
        {"type": "input_text", "text": "The caption says that the shape is blue."},
        {"type": "input_text", "text": "What colour is the shape?"},
    ]
    item = {"role": "user", "content": content}
    return {"model": BASE, "input": [item], "max_output_tokens": 4, "modint": IMAGE, **fields}


def documents(body: bytes) -> list[JSON]:
    return [json.loads(data) for event in Splitter().feed(body) if (data := data_of(event)) is not None]


async def test_an_answer_that_followed_the_caption_is_flagged(
    gateway: Running, upstream: FakeUpstream
) -> None:
    answer = await gateway.post(asked(), "/v1/responses")
    assert (answer.status, answer.headers["x-modint-verdict"]) == (200, "flagged")
    assert answer.json["modint"]["cause"] == "text"
    assert answer.json["output"][0]["content"][0] == {
        "type": "output_text",
        "text": "blue",
        "annotations": [],
        "logprobs": None,
    }
    main, *views = upstream.calls
    assert (main["include"], main["top_logprobs"]) == (["message.output_text.logprobs"], 20)
    assert "modint" not in main
    assert [view["max_tokens"] for view in views] == [2, 2, 2]
    assert not any({"input", "max_output_tokens", "max_completion_tokens"} & set(view) for view in views)
    assert gateway.value("modint_requests_total", **OK) == 1
    assert gateway.value("modint_tokens_total", model=BASE, adapter="none", direction="input") == 40


async def test_an_answer_that_the_picture_decided_passes(gateway: Running, upstream: FakeUpstream) -> None:
    upstream.script = steady
    assert (await gateway.post(asked(), "/v1/responses")).json["modint"]["verdict"] == "pass"


async def test_an_empty_list_of_tools_which_chat_refuses_is_no_obstacle(gateway: Running) -> None:
    answer = await gateway.post(asked(tools=[]), "/v1/responses")
    assert answer.json["modint"]["verdict"] == "flagged"


async def test_a_response_whose_events_hold_thousands_of_tokens_is_judged_and_streamed(
    gateway: Running, upstream: FakeUpstream
) -> None:
    words = ["blue", *(f" word{n}" for n in range(4_600))]  # with 20 alternatives each: more than 8 MiB
    tops = tuple({word: 0.8} | {f" other{n}": 0.01 for n in range(19)} for word in words)
    upstream.script = lambda body: Answer("".join(words), tops=tops) if "input" in body else misled(body)
    events = documents((await gateway.post(asked(stream=True), "/v1/responses")).body)
    assert len(upstream.sent) > 4 * 8 * 2**20
    assert events[-1]["type"] == "response.completed"
    response = events[-1]["response"]
    assert response["modint"]["verdict"] == "flagged"
    assert response["output"][0]["content"][0]["text"] == "".join(words)
    assert response["output"][0]["content"][0]["logprobs"] is None


async def test_the_verdict_of_a_stream_is_in_the_completed_response(gateway: Running) -> None:
    events = documents((await gateway.post(asked(stream=True), "/v1/responses")).body)
    created, delta, completed = events[0], events[3], events[-1]
    assert (created["type"], delta["delta"], delta["logprobs"]) == ("response.created", "blue", [])
    assert completed["type"] == "response.completed"
    assert completed["response"]["modint"]["verdict"] == "flagged"
    assert completed["response"]["output"][0]["content"][0]["logprobs"] is None


async def test_the_official_client_reads_the_verdict(gateway: Running) -> None:
    fields: Any = {name: value for name, value in asked().items() if name != "modint"}
    more = {"modint": IMAGE}
    response = await gateway.openai.responses.create(**fields, extra_body=more)
    assert response.output_text == "blue"
    assert response.modint["verdict"] == "flagged"
    stream = await gateway.openai.responses.create(**fields, extra_body=more, stream=True)
    *_, last = [event async for event in stream]
    assert last.type == "response.completed"
    assert last.response.modint["verdict"] == "flagged"


async def test_logprobs_that_the_client_asked_for_stay_and_no_more(gateway: Running) -> None:
    wanted = asked(include=["message.output_text.logprobs"], top_logprobs=1)
    document = (await gateway.post(wanted, "/v1/responses")).json
    (entry,) = document["output"][0]["content"][0]["logprobs"]
    assert (entry["token"], len(entry["top_logprobs"]), document["top_logprobs"]) == ("blue", 1, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_bytes_are_kept_both_ways_with_the_guard_off(
    gateway: Running, upstream: FakeUpstream, stream: bool
) -> None:
    body = {name: value for name, value in asked(stream=stream).items() if name != "modint"}
    raw = json.dumps(body, indent=3).encode()
    answer = await gateway.post(raw, "/v1/responses", x_modint_mode="off")
    assert upstream.raw == [raw]
    assert (answer.headers["x-modint-verdict"], answer.headers["x-modint-reason"]) == ("skipped", "opted_out")
    assert answer.body == upstream.sent if stream else b"modint" not in answer.body


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input": "What is two plus three?"}, "no_image"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tool_calls"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}, "structured_output"),
        ({"previous_response_id": "resp_0"}, "unsupported_part"),
    ],
)
async def test_what_cannot_be_judged_is_answered_and_skipped(
    gateway: Running, upstream: FakeUpstream, fields: JSON, reason: str
) -> None:
    answer = await gateway.post(asked(**fields), "/v1/responses")
    assert answer.status == 200
    assert (answer.json["modint"]["verdict"], answer.json["modint"]["reason"]) == ("skipped", reason)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        ({"type": "input_image", "image_url": "http://10.0.0.1/a.png"}, 400, "remote_image_refused"),
        ({"type": "input_file", "file_url": "http://10.0.0.1/a.pdf"}, 400, "remote_image_refused"),
        ({"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="}, 400, "invalid_image"),
    ],
)
@pytest.mark.parametrize("mode", ["on", "off"])
async def test_pictures_are_checked(
    gateway: Running, upstream: FakeUpstream, part: JSON, status: int, code: str, mode: str
) -> None:
    body = asked(input=[{"role": "user", "content": [part]}])
    answer = await gateway.post(body, "/v1/responses", x_modint_mode=mode)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert upstream.calls == []


async def test_an_input_of_another_shape_is_the_engines_to_refuse(
    gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("", fault="400")
    answer = await gateway.post(asked(input=""), "/v1/responses")
    assert (answer.status, answer.error["message"]) == (400, "too long")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"input": [{"role": "user", "content": [1.5, None, []]}]},
        {"input": [{"content": "no role"}, {"role": "user", "content": "What?"}]},
        {"input": [{"role": "user", "content": 7}]},
        {"input": [{"role": "assistant", "content": [[]]}, {"type": "function_call"}]},
        {"include": 7},
        {"include": "message.output_text.logprobs"},
        {"top_logprobs": "five"},
        {"top_logprobs": 1.5},
    ],
)
async def test_fields_of_another_shape_go_to_the_engine_as_they_are(
    gateway: Running, upstream: FakeUpstream, fields: JSON, stream: bool
) -> None:
    answer = await gateway.post(asked(stream=stream, **fields), "/v1/responses")
    is_refused = answer.status == 400 and answer.error["message"] == "too long"  # by the engine
    assert is_refused or (answer.status, answer.headers["x-modint-verdict"]) == (200, "skipped")
    (sent,) = upstream.calls
    assert {name: sent[name] for name in fields} == fields


async def test_a_stream_that_completes_twice_is_judged_once(gateway: Running, upstream: FakeUpstream) -> None:
    def twice(body: JSON, event: JSON) -> JSON:
        if event.get("type") != "response.output_text.delta":  # views are asked as chat
            return event
        return {"type": "response.completed", "response": {"output": [], "n": 1}}

    upstream.damage = twice
    answer = await gateway.post(asked(stream=True), "/v1/responses")
    first, second = (each for each in documents(answer.body) if each["type"] == "response.completed")
    assert answer.status == 200
    assert first["response"]["modint"]["verdict"] == "skipped"  # it says nothing
    assert second["response"]["output"][0]["content"][0]["text"] == "blue"


async def test_an_engine_that_refuses_what_we_added_gets_the_clients_own_request(
    gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="400" if "include" in body else None)
    answer = await gateway.post(asked(), "/v1/responses")
    assert (answer.status, answer.json["modint"]["reason"]) == (200, "upstream_error")


async def test_an_engine_that_dies_mid_stream_ends_in_an_error(
    gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="die" if is_main(body) else None)
    fields: Any = {name: value for name, value in asked(stream=True).items() if name != "modint"}
    with pytest.raises(openai.APIError, match="before its response was whole"):
        async for _ in await gateway.openai.responses.create(**fields):
            pass


async def test_the_gain_is_in_the_caches_key_of_every_call(upstream: FakeUpstream) -> None:
    upstream.responses = True
    async with serving(upstream.url, image_attention=0.5) as gateway:
        upstream.forget()
        assert (await gateway.post(asked(), "/v1/responses")).status == 200
    assert [call["cache_salt"] for call in upstream.calls] == ["image-attention-0.5"] * 4


async def test_an_engine_without_the_route_says_so(running_gateway: Running) -> None:
    answer = await running_gateway.post(asked(), "/v1/responses")
    assert (answer.status, answer.error["code"]) == (404, "unknown_route")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_policy_replaces_a_flagged_answer(
    upstream: FakeUpstream, tmp_path: Path, stream: bool
) -> None:
    upstream.responses = True
    async with serving(upstream.url, action="abstain") as gateway:
        answer = await gateway.post(asked(stream=stream), "/v1/responses")
    assert answer.headers["x-modint-action"] == "abstain"
    response = documents(answer.body)[-1]["response"] if stream else answer.json
    text = response["output"][0]["content"][0]["text"]
    assert text and text != "blue"
    assert response["modint"]["action"] == "abstain"
    if stream:
        kinds = [event["type"].removeprefix("response.") for event in documents(answer.body)]
        assert kinds[0] == "created" and kinds[-2:] == ["output_item.done", "completed"]
        assert b'"delta":"blue"' not in answer.body


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_breaks_on_what_we_added_is_asked_once_more(
    gateway: Running, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="500" if "include" in body else None)
    for _ in range(5):  # as many in a row as a quiet gateway tries again
        answer = await gateway.post(asked(stream=stream), "/v1/responses")
        report = (documents(answer.body)[-1]["response"] if stream else answer.json)["modint"]
        assert (answer.status, report["verdict"], report["reason"]) == (200, "unscored", "upstream_error")
    assert (await gateway.post(asked(stream=stream), "/v1/responses")).status == 500


async def test_a_busy_gateway_leaves_probes_out(upstream: FakeUpstream) -> None:
    upstream.responses = True
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, delay_s=0.5)
    async with serving(upstream.url, max_in_flight=4, shed_probes_at=0.5) as gateway:
        upstream.forget()
        sent = [asyncio.ensure_future(gateway.post(asked(), "/v1/responses")) for _ in range(4)]
        reasons = [reply.json["modint"]["reason"] for reply in await asyncio.gather(*sent)]
    assert reasons.count("overload") == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_closed_policy_withholds_what_could_not_be_judged(
    upstream: FakeUpstream, tmp_path: Path, stream: bool
) -> None:
    upstream.responses = True
    closed = "action = 'abstain'\nunscored = 'abstain'\nabstain_as = 'error'"
    async with with_policy(upstream, tmp_path, closed) as gateway:
        upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="500")
        reply = await gateway.post(asked(stream=stream), "/v1/responses")
    assert (reply.status, reply.json["error"]["code"]) == (422, "modality_interference")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        {"usage": 7},
        {"usage": {"input_tokens": -1, "output_tokens": "many"}},
        {"output": "none"},
        {"output": [{"type": "message", "content": [{"type": "output_text"}]}]},
    ],
)
async def test_odd_answers_reach_the_client_as_they_are(
    gateway: Running, upstream: FakeUpstream, damage: JSON, stream: bool
) -> None:
    def damaged(body: JSON, document: JSON) -> JSON:
        if document.get("type") == "response.completed":
            return {**document, "response": {**document["response"], **damage}}
        return {**document, **damage} if "output" in document else document

    upstream.damage = damaged
    answer = await gateway.post(asked(stream=stream), "/v1/responses")
    assert answer.status == 200
    response = documents(answer.body)[-1]["response"] if stream else answer.json
    assert {name: response[name] for name in damage} == damage
    assert response["modint"]["verdict"] in ("flagged", "unscored")
    assert gateway.value("modint_requests_total", **OK) == 1


@pytest.mark.parametrize("response", [None, 7, "whole"])
async def test_a_stream_that_ends_without_a_response_is_passed_on(
    gateway: Running, upstream: FakeUpstream, response: Any
) -> None:
    upstream.damage = lambda body, event: (
        {**event, "response": response} if event.get("type") == "response.completed" else event
    )
    answer = await gateway.post(asked(stream=True), "/v1/responses")
    assert documents(answer.body)[-1]["response"] == response


async def test_each_key_has_a_cache_of_its_own(upstream: FakeUpstream) -> None:
    upstream.responses = True
    async with serving(upstream.url, api_keys="key-one,key-two") as gateway:
        upstream.forget()
        for key in ("key-one", "key-two"):
            await gateway.post(asked(), "/v1/responses", authorization=f"Bearer {key}")
    salts = [call["cache_salt"] for call in upstream.calls]
    assert len(salts) == 8 and len(set(salts[:4])) == len(set(salts[4:])) == 1
    assert salts[0] != salts[4]


async def test_the_pixels_of_a_request_are_counted_together(upstream: FakeUpstream) -> None:
    upstream.responses = True
    async with serving(upstream.url, max_request_pixels=100) as gateway:
        upstream.forget()
        part = {"type": "input_image", "image_url": picture()}
        refused = await gateway.post(
            asked(input=[{"role": "user", "content": [part, part]}]), "/v1/responses"
        )
    assert (refused.status, refused.error["code"], upstream.calls) == (413, "image_too_large", [])
