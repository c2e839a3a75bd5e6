"""Clients that leave and engines that die, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from modint_server.request.sse import COMMENT, BrokenStreamError, Choices, Splitter, data_of, events_of
from tests.server.conftest import Running, chat
from tests.server.fake_upstream import Answer, FakeUpstream, is_main, misled


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in another task's state
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_a_stream_cancels_the_answer_and_every_probe(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="wait" if is_main(body) else "hang")
    async with running_gateway.http.post(
        running_gateway.url + "/v1/chat/completions", json=chat(stream=True)
    ) as response:
        await response.content.readany()
        await until(lambda: upstream.open == 4)
        response.close()
    await until(lambda: upstream.open == 0)
    assert upstream.aborts == 4
    await until(lambda: running_gateway.gateway.in_flight == 0)
    cancelled = {"model": "tinyworld-base", "adapter": "none", "route": "chat", "outcome": "cancelled"}
    assert running_gateway.value("modint_requests_total", **cancelled) == 1


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_a_client_that_leaves_before_a_whole_answer_cancels_everything(
    running_gateway: Running, upstream: FakeUpstream, mode: str
) -> None:
    upstream.script = lambda body: Answer("", fault="hang")
    calls = 4 if mode == "on" else 1
    asking = asyncio.create_task(running_gateway.post(chat(), x_modint_mode=mode))
    await until(lambda: upstream.open == calls)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: upstream.open == 0)
    assert upstream.aborts == calls


async def test_a_client_that_leaves_while_the_verdict_is_awaited_cancels_the_probes(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="hang")
    async with running_gateway.http.post(
        running_gateway.url + "/v1/chat/completions", json=chat(stream=True)
    ) as response:
        seen = b""
        while b"ue" not in seen:
            seen += await response.content.readany()
        await until(lambda: upstream.open == 3)
        response.close()
    await until(lambda: upstream.open == 0)
    assert upstream.aborts == 3


@pytest.mark.parametrize("fault", ["die", "half frame", "error frame", "not JSON"])
@pytest.mark.parametrize("mode", ["on", "off"])
async def test_an_engine_that_dies_mid_stream_ends_in_an_error_frame_and_done(
    running_gateway: Running, upstream: FakeUpstream, fault: str, mode: str
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault=fault if is_main(body) else "hang")
    said = await running_gateway.post(chat(stream=True), x_modint_mode=mode)
    assert said.status == 200
    *frames, error, done = [data_of(event) or b"" for event in Splitter().feed(said.body)]
    assert done == b"[DONE]"
    assert set(json.loads(error)["error"]) == {"message", "type", "param", "code"}
    assert [json.loads(frame)["choices"][0]["delta"].get("content") for frame in frames] == ["", "bl"]
    assert b"modint" not in said.body
    await until(lambda: upstream.open == 0)
    interrupted = {"model": "tinyworld-base", "adapter": "none", "route": "chat", "outcome": "interrupted"}
    assert running_gateway.value("modint_requests_total", **interrupted) == 1


@pytest.mark.parametrize("end", [b"", b"data: [DONE]", b"data: [DONE]\r\n", b": bye\n\n"])
@pytest.mark.parametrize("mode", ["on", "off"])
async def test_an_answer_that_is_whole_needs_no_done_of_the_engine(
    running_gateway: Running, upstream: FakeUpstream, end: bytes, mode: str
) -> None:
    upstream.stream_end = end
    answer = await running_gateway.post(chat(stream=True), x_modint_mode=mode)
    frames = [data for event in Splitter().feed(answer.body) if (data := data_of(event)) is not None]
    assert frames[-1] == b"[DONE]"
    assert frames.count(b"[DONE]") == 1
    assert json.loads(frames[-2])["choices"][0]["finish_reason"] == "stop"
    assert ("modint" in json.loads(frames[-2])) == (mode == "on")
    assert b'"error"' not in answer.body


async def test_an_error_of_null_in_every_chunk_is_no_error(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.extra = {"error": None}
    answer = await running_gateway.post(chat(stream=True))
    assert b'"error":{' not in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b'"verdict"' in answer.body


async def test_empty_data_are_signs_of_life_and_no_chunks(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"blue"},"finish_reason":"stop"}]}\n\n'
    sent = b"data:\n\n" + stream + b"data: \r\n\r\ndata: [DONE]\n\n"
    upstream.script = lambda body: Answer("", raw=("text/event-stream", sent))
    create: Any = running_gateway.openai.chat.completions.create
    chunks = [chunk async for chunk in await create(**chat(stream=True))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "blue"
    assert [await anext(events_of(one(b"data:\n\n")))] == [COMMENT]
    assert [event async for event in events_of(one(b"data: {}\n\ndata:"))] == [b"data: {}\n\n"]


async def one(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


def test_a_stream_is_whole_only_if_every_choice_has_ended() -> None:
    choices = Choices()
    with pytest.raises(BrokenStreamError, match="before its answer was whole"):
        choices.check_ended()
    choices.feed({"choices": [{"index": 0}, {"index": 1, "finish_reason": "stop"}]})
    with pytest.raises(BrokenStreamError):
        choices.check_ended()
    choices.feed({"choices": [{"index": 0, "finish_reason": "length"}]})
    choices.feed({"choices": [], "usage": {}})
    choices.check_ended()


async def test_a_frame_that_nobody_understands_is_passed_on(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="odd frame")
    said = await running_gateway.post(chat(stream=True))
    *_, odd, error, done = [data_of(event) or b"" for event in Splitter().feed(said.body)]
    assert json.loads(odd) == {"choices": ["neither", "is an object"]}
    assert json.loads(error)["error"]["code"] == "upstream_protocol"  # the engine ended before [DONE]
    assert done == b"[DONE]"


async def test_text_arrives_before_the_engine_has_finished(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="wait" if is_main(body) else None)
    async with running_gateway.http.post(
        running_gateway.url + "/v1/chat/completions", json=chat(stream=True)
    ) as response:
        seen = b""
        while b'"bl"' not in seen:
            seen += await response.content.readany()
        upstream.gate.set()
        await response.read()


async def test_an_engine_that_comes_back_is_attached_to_again(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    models, upstream.model_list = upstream.model_list, []
    running_gateway.gateway.attachment.problem = "gone"
    await until(lambda: running_gateway.gateway.attachment.problem not in (None, "gone"))
    assert (await running_gateway.get("/readyz")).status == 503
    upstream.model_list = models
    await until(lambda: running_gateway.gateway.attachment.ready)
    assert (await running_gateway.get("/readyz")).status == 200
