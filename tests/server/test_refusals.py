"""Every refusal: OpenAI's envelope, the right status, and nothing sent to the engine."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.server.conftest import Running, chat, picture, serving, with_image
from tests.server.fake_upstream import BASE, Answer, FakeUpstream, running


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in chat().items() if key != name}


def deep(levels: int) -> bytes:
    return b'{"model": "m", "x": ' + b"[" * levels + b"]" * levels + b"}"


TRUNCATED = picture(size=(64, 64))[:-80]

REFUSALS: list[tuple[str, Any, int, str]] = [
    ("malformed JSON", b'{"model": ', 400, "invalid_json"),
    ("a list", b"[]", 400, "invalid_json"),
    ("too deep", deep(100), 400, "too_deep"),
    ("far too deep", deep(100_000), 400, "invalid_json"),
    ("no messages", without("messages"), 400, "invalid_messages"),
    ("empty messages", chat(messages=[]), 400, "invalid_messages"),
    ("messages that are text", chat(messages="hello"), 400, "invalid_messages"),
    ("a message that is text", chat(messages=["hello"]), 400, "invalid_messages"),
    ("content that is a number", chat(messages=[{"role": "user", "content": 5}]), 400, "invalid_messages"),
    ("a model without a name", chat(model=""), 400, "invalid_model"),
    ("template options that are text", chat(chat_template_kwargs="x"), 400, "invalid_type"),
    ("embeddings for a prompt", chat(prompt_embeds="AAAA"), 400, "embeds_refused"),
    ("half of a UTF-16 text", b"\xff\xfe{\x00\xd8", 400, "invalid_json"),
    ("a model that is a number", chat(model=5), 400, "invalid_model"),
    ("an unknown model", chat(model="gpt-9"), 404, "model_not_found"),
    ("stream of the wrong type", chat(stream="maybe"), 400, "invalid_type"),
    ("n of the wrong type", chat(n="two"), 400, "invalid_type"),
    ("n over the cap", chat(n=1000), 400, "over_limit"),
    ("prompt_logprobs over the cap", chat(prompt_logprobs=1000), 400, "over_limit"),
    ("an image that is none", with_image({"url": "data:image/png;base64,aGVsbG8="}), 400, "invalid_image"),
    ("an image without data", with_image({"url": ""}), 400, "invalid_image"),
    ("a null image", with_image(None), 400, "invalid_image"),
    ("a truncated image", with_image({"url": TRUNCATED}), 400, "invalid_image"),
    ("a remote image", with_image({"url": "https://example.org/cat.png"}), 400, "remote_image_refused"),
    ("a remote image in short form", with_image("http://169.254.169.254/x"), 400, "remote_image_refused"),
    ("a local file", with_image({"url": "file:///etc/passwd"}), 400, "remote_image_refused"),
    ("an unknown modint key", chat(modint={"relevent": "image"}), 400, "unknown_parameter"),
    ("modint of the wrong type", chat(modint=[]), 400, "invalid_request"),
]


@pytest.mark.parametrize(("what", "body", "status", "code"), REFUSALS, ids=[row[0] for row in REFUSALS])
async def test_bad_input_is_refused_in_an_envelope(
    running_gateway: Running, upstream: FakeUpstream, what: str, body: Any, status: int, code: str
) -> None:
    said = await running_gateway.post(body)
    assert (said.status, said.error["code"]) == (status, code)
    assert said.headers["x-should-retry"] == "false"
    assert upstream.calls == []


@pytest.mark.parametrize("url", ["https://example.org/cat.png", "data:image/png;base64,aGVsbG8="])
async def test_images_are_checked_with_the_guard_off_too(running_gateway: Running, url: str) -> None:
    said = await running_gateway.post(with_image({"url": url}), x_modint_mode="off")
    assert said.status == 400


@pytest.mark.parametrize("kind", ["audio_url", "video_url"])
async def test_other_media_by_address_are_refused(running_gateway: Running, kind: str) -> None:
    body = chat()
    body["messages"][0]["content"].append({"type": kind, kind: {"url": "http://10.0.0.1/x"}})
    assert (await running_gateway.post(body)).error["code"] == "remote_image_refused"


async def test_embeddings_in_place_of_an_image_are_refused(running_gateway: Running) -> None:
    body = chat()
    body["messages"][0]["content"].append({"type": "image_embeds", "image_embeds": "AAAA"})
    assert (await running_gateway.post(body)).error["code"] == "embeds_refused"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        ("7", "7"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT"),
        ("soon", None),
        ("", None),
    ],
)
async def test_the_engines_retry_after_reaches_the_client(
    running_gateway: Running, upstream: FakeUpstream, sent: str, passed_on: str | None, stream: bool
) -> None:
    upstream.script = lambda body: Answer("", fault="429")
    upstream.retry_after = sent
    answer = await running_gateway.post(chat(stream=stream))
    assert (answer.status, answer.headers.get("retry-after")) == (429, passed_on)


async def test_embeddings_in_place_of_a_prompt_are_refused(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    body = {"model": BASE, "prompt": "2+3=", "prompt_embeds": ["AAAA"]}
    assert (await running_gateway.post(body, "/v1/completions")).error["code"] == "embeds_refused"
    assert upstream.raw == []
    fine = await running_gateway.post({**body, "prompt_embeds": None}, "/v1/completions")
    assert fine.status == 200


async def test_with_several_bases_a_request_must_name_one(upstream: FakeUpstream) -> None:
    upstream.model_list.append({**upstream.model_list[0], "id": "another-base"})
    async with serving(upstream.url) as gateway:
        answer = await gateway.post(without("model"))
    assert (answer.status, answer.error["code"]) == (400, "invalid_model")


async def test_an_unknown_model_is_told_which_are_served(running_gateway: Running) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await running_gateway.openai.chat.completions.create(**chat(model="gpt-9"))
    assert "tinyworld-base, robust-lora" in str(refused.value)
    assert "gpt-9" not in str(refused.value)


async def test_bodies_messages_images_and_pixels_are_limited(upstream: FakeUpstream) -> None:
    limits: dict[str, Any] = {
        "max_body_bytes": 6000,
        "max_messages": 3,
        "max_images": 2,
        "max_image_pixels": 100,
    }
    async with serving(upstream.url, **limits) as gateway:
        large = await gateway.post(chat(user="x" * 7000))
        many = await gateway.post(chat(messages=[{"role": "user", "content": "hi"}] * 4))
        three = chat()
        three["messages"][0]["content"] += three["messages"][0]["content"][:1] * 2
        images = await gateway.post(three)
        pixels = await gateway.post(with_image({"url": picture(size=(11, 10))}))
        fine = await gateway.post(chat())
    assert (large.status, large.error["code"]) == (413, "body_too_large")
    assert (many.status, many.error["code"]) == (400, "too_many_messages")
    assert (images.status, images.error["code"]) == (400, "too_many_images")
    assert (pixels.status, pixels.error["code"]) == (413, "image_too_large")
    assert fine.status == 200


async def test_a_body_without_a_declared_length_is_counted(upstream: FakeUpstream) -> None:
    async def pieces() -> Any:
        for _ in range(10):
            yield b"x" * 500

    async with serving(upstream.url, max_body_bytes=3000) as gateway:
        url = gateway.url + "/v1/chat/completions"
        async with gateway.http.post(url, data=pieces()) as response:
            assert response.status == 413


async def test_compressed_bodies_are_refused(running_gateway: Running) -> None:
    said = await running_gateway.post(b"\x1f\x8b", content_encoding="gzip")
    assert (said.status, said.error["code"]) == (415, "compressed_body")


async def test_a_body_that_never_ends_is_given_up(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, body_timeout_s=0.1) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"body_timeout"' in answer


async def test_unknown_routes_and_wrong_methods_get_the_envelope(running_gateway: Running) -> None:
    for path in (
        "/",
        "/v1/nothing",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/pause",
        "/v1/load_lora_adapter",
    ):
        said = await running_gateway.get(path)
        assert (said.status, said.error["code"]) == (404, "unknown_route")
    said = await running_gateway.get("/v1/chat/completions")
    assert (said.status, said.error["code"]) == (405, "method_not_allowed")
    assert said.headers["allow"] == "POST"


async def test_clients_show_a_key_where_keys_are_set(upstream: FakeUpstream, tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nclient-key\n", "utf-8")
    async with serving(upstream.url, api_keys_file=file) as gateway:
        upstream.forget()
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first"}):
            said = await gateway.post(chat(), **headers)
            assert (said.status, said.error["code"]) == (401, "invalid_api_key")
        assert (await gateway.get("/v1/models")).status == 401
        assert upstream.calls == []
        assert (await gateway.openai.chat.completions.create(**chat())).choices
        assert (await gateway.get("/livez")).status == 200
    assert all("authorization" not in head for head in upstream.heads)


@pytest.mark.parametrize(
    ("fault", "status", "code", "message"),
    [
        ("500", 500, "500", "out of memory"),
        ("400", 400, "400", "too long"),
        ("400 in two pieces", 400, "400", "too long for me"),
        ("401", 502, "upstream_auth", "the engine refused the gateway's key"),
        ("html", 502, "upstream_502", "the engine answered with status 502"),
        ("html 200", 502, "upstream_protocol", "the engine's answer is no JSON"),
        ("close", 502, "upstream_unreachable", "the engine cannot be reached"),
    ],
)
@pytest.mark.parametrize("mode", ["on", "off"])
async def test_errors_of_the_engine_arrive_in_the_envelope(
    running_gateway: Running,
    upstream: FakeUpstream,
    fault: str,
    status: int,
    code: str,
    message: str,
    mode: str,
) -> None:
    upstream.script = lambda body: Answer("", fault=fault)
    said = await running_gateway.post(chat(), x_modint_mode=mode)
    assert (said.status, said.error["code"], said.error["message"]) == (status, code, message)
    assert "x-modint-verdict" not in said.headers


async def test_a_stream_that_turns_out_to_be_html_is_an_error_with_its_status(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("", fault="html 200")
    said = await running_gateway.post(chat(stream=True))
    assert (said.status, said.error["code"]) == (502, "upstream_protocol")


async def test_an_engine_that_hangs_is_a_timeout(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, read_timeout_s=0.3) as gateway:
        upstream.script = lambda body: Answer("", fault="hang")
        said = await gateway.post(chat())
    assert (said.status, said.error["code"]) == (504, "upstream_timeout")


async def test_without_an_engine_requests_wait_for_nothing(upstream: FakeUpstream) -> None:
    async with running(FakeUpstream()) as gone:
        url = gone.url
    async with serving(url, ready=False) as gateway:
        said = await gateway.post(chat())
        ready = await gateway.get("/readyz")
        assert (said.status, said.error["code"]) == (503, "not_ready")
        assert said.headers["retry-after"]
        assert ready.status == 503
        assert "cannot be reached" in ready.json["reasons"][0]
        assert (await gateway.get("/livez")).status == 200


async def test_pydantic_messages_of_the_engine_do_not_carry_the_body_back(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    from modint_server.errors import translate

    body = {
        "error": {"message": "1 validation error: bad [type=x, input_value={'secret': 1}, input_type=dict]"}
    }
    assert translate(json.dumps(body).encode())["message"] == "1 validation error: bad [type=x"


def test_what_fastapi_says_of_a_request_is_told() -> None:
    from modint_server.errors import translate

    wrong = {
        "type": "missing",
        "loc": ["body", "messages", 0, "role"],
        "msg": "Field required",
        "input": "me",
    }
    told = translate(json.dumps({"detail": [wrong, {"msg": "No"}, 5]}).encode())
    assert told["message"] == "messages.0.role: Field required; No"


async def test_more_requests_than_admitted_are_turned_away_with_a_time_to_come_back(
    upstream: FakeUpstream,
) -> None:
    async with serving(upstream.url, max_in_flight=1) as gateway:
        upstream.script = lambda body: Answer("red", {"red": 1.0}, delay_s=0.3)
        answers = await asyncio.gather(*(gateway.post(chat(), x_modint_mode="off") for _ in range(3)))
        assert sorted(said.status for said in answers) == [200, 503, 503]
        refused = next(said for said in answers if said.status == 503)
        assert refused.error["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert gateway.value("modint_admission_rejections_total", reason="in_flight") == 2
        gateway.gateway.draining = True
        assert (await gateway.post(chat())).error["code"] == "draining"
        assert (await gateway.get("/readyz")).status == 503


async def test_a_request_id_is_the_clients_if_harmless_and_else_our_own(running_gateway: Running) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
    assert (await running_gateway.post(body, x_request_id="a.b-C_1")).headers["x-request-id"] == "a.b-C_1"
    for bad in ("a b", "x" * 129, "ü"):
        own = (await running_gateway.post(body, x_request_id=bad)).headers["x-request-id"]
        assert own != bad
        assert len(own) == 32
