"""The engine's further routes: what is passed through, and what is refused on the way."""

import json
from typing import Any

import aiohttp
import pytest

from modint_guard.errors import ConfigError
from modint_server.settings import load_settings
from tests.server.conftest import Running, picture, serving
from tests.server.fake_upstream import BASE, FakeUpstream

VECTORS = b'{"object": "list", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}'


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


async def test_bytes_go_through_both_ways(running_gateway: Running, upstream: FakeUpstream) -> None:
    upstream.further["/v1/embeddings"] = ("application/json", VECTORS)
    raw = b'{"model" : "tinyworld-base", "input": ["two"]}'
    answer = await running_gateway.post(raw, "/v1/embeddings", x_request_id="abc")
    assert (answer.status, answer.body) == (200, VECTORS)
    assert upstream.raw == [raw]
    passed = {"model": BASE, "adapter": "none", "route": "passed", "outcome": "ok"}
    assert running_gateway.value("modint_requests_total", **passed) == 1


async def test_fields_that_the_engine_would_trust_are_taken_out(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.further["/tokenize"] = ("application/json", b"{}")
    body = {"messages": [{"role": "user", "content": "Hi"}], "chat_template": "{{ 1 }}", "cache_salt": "x"}
    assert (await running_gateway.post(body, "/tokenize")).status == 200
    assert json.loads(upstream.raw[0]) == {"model": BASE, "messages": body["messages"]}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"messages": [{"content": [part("http://10.0.0.1/a.png")]}]}, 400, "remote_image_refused"),
        ({"documents": {"content": [{"image_url": "file:///etc/passwd"}]}}, 400, "remote_image_refused"),
        ({"data_1": [{"content": [{"video_url": "http://a/b"}]}]}, 400, "remote_image_refused"),
        ({"input": [{"content": [{"type": "image_embeds", "image_embeds": "AAAA"}]}]}, 400, "embeds_refused"),
        ({"input": [{"content": [part(picture(size=(11, 10)))]}]}, 413, "image_too_large"),
        ({"input": [{"content": [part(picture())] * 3}]}, 400, "too_many_images"),
        ({"input": "Hi", "model": "gpt-9"}, 404, "model_not_found"),
    ],
)  # fmt: skip
async def test_limits_hold_wherever_a_picture_stands(
    upstream: FakeUpstream, body: dict[str, Any], status: int, code: str
) -> None:
    async with serving(upstream.url, max_image_pixels=100, max_images=2) as gateway:
        upstream.forget()
        answer = await gateway.post(body, "/pooling")
    assert (answer.status, answer.error["code"]) == (status, code)
    assert upstream.raw == []


async def test_files_of_sound_are_sent_on_as_they_came(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.further["/v1/audio/transcriptions"] = ("application/json", b'{"text":"hello"}')
    url = running_gateway.url + "/v1/audio/transcriptions"
    form = aiohttp.FormData({"model": BASE})
    form.add_field("file", b"RIFF", filename="a.wav", content_type="audio/wav")
    async with running_gateway.http.post(url, data=form) as response:
        assert (response.status, await response.json()) == (200, {"text": "hello"})
    assert b"RIFF" in upstream.raw[0]
    kinds = {head["content-type"] for head in upstream.heads if "content-type" in head}
    assert [kind.partition("=")[0] for kind in kinds] == ["multipart/form-data; boundary"]
    form = aiohttp.FormData({"model": BASE, "vllm_xargs": "{}"})
    form.add_field("file", b"RIFF", filename="a.wav")
    async with running_gateway.http.post(url, data=form) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "vllm_xargs"


async def test_a_stream_goes_through_as_it_comes(running_gateway: Running, upstream: FakeUpstream) -> None:
    events = b'data: {"text": "hel"}\n\ndata: {"text": "lo"}\n\ndata: [DONE]\n\n'
    upstream.further["/v1/audio/transcriptions"] = ("text/event-stream", events)
    answer = await running_gateway.post({"file": "x", "stream": True}, "/v1/audio/transcriptions")
    assert answer.body == events
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_the_engines_health_asks_for_no_key_and_its_other_routes_do(upstream: FakeUpstream) -> None:
    upstream.further["/health"] = ("text/plain", b"")
    upstream.further["/v1/embeddings"] = ("application/json", VECTORS)
    async with serving(upstream.url, api_keys=("hush",)) as gateway:
        assert (await gateway.get("/health")).status == 200
        assert (await gateway.post({"input": "Hi"}, "/v1/embeddings")).error["code"] == "invalid_api_key"
        fine = await gateway.post({"input": "Hi"}, "/v1/embeddings", authorization="Bearer hush")
        assert fine.status == 200


async def test_a_route_that_the_engine_has_not_is_unknown(running_gateway: Running) -> None:
    answer = await running_gateway.post({"input": "Hi"}, "/v1/embeddings")
    assert (answer.status, answer.error["code"]) == (404, "unknown_route")


async def test_an_operator_can_list_fewer_routes(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, pass_routes=("/health",)) as gateway:
        assert (await gateway.post({"input": "Hi"}, "/v1/embeddings")).error["code"] == "unknown_route"
    assert "/v1/embeddings" not in upstream.paths


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/metrics"])
def test_routes_of_administration_cannot_be_listed(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("MODINT_PASS_ROUTES", f"/health,{path}")
    with pytest.raises(ConfigError, match=f"pass_routes: {path} is not passed through: choose from"):
        load_settings()
