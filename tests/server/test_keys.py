"""Keys with names, models and limits: who may ask what, how often, and what a file of keys may hold."""

import json
import logging
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from modint_guard.errors import ConfigError
from modint_server.request.keys import Client, Keys, digest_of
from modint_server.request.rate_limits import RateLimitError, RateLimits
from modint_server.settings import Settings
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, FakeUpstream
from tests.server.test_serving import adapter, model  # noqa: F401 - fixtures
from tests.server.test_serving import serving as process

JSON = dict[str, Any]
WORDS = {"model": BASE, "messages": [{"role": "user", "content": "What is two plus three?"}], "max_tokens": 4}
TWO = f"""
[[key]]
name = "shop"
key = "key-one"
models = ["{BASE}"]
requests_per_minute = 3
tokens_per_minute = 100

[[key]]
name = "lab"
sha256 = "{digest_of("key-two")}"
"""
ONE, LAB = {"authorization": "Bearer key-one"}, {"authorization": "Bearer key-two"}


def written(folder: Path, text: str) -> Path:
    file = folder / "keys"
    file.write_text(text, "utf-8")
    return file


def keys_of(file: Path, **settings: Any) -> Keys:
    return Keys(Settings(api_keys_file=file, **settings))


def test_a_key_has_a_name_models_and_limits(tmp_path: Path) -> None:
    keys = keys_of(written(tmp_path, TWO), api_keys="key-three")
    assert keys.check(ONE) == Client(digest_of("key-one"), "shop", frozenset({BASE}), 3, 100)
    assert keys.check(LAB) == Client(digest_of("key-two"), "lab")
    assert keys.check({"x-api-key": "key-three"}) == Client(digest_of("key-three"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("[[keys]]\nname = 'a'\nkey = 'a'", r"must hold \[\[key\]\] tables and nothing else"),
        ("key = []", "holds no key"),
        ("[[key]]\nkey = 'a'", "key 1: name must have"),
        ("[[key]]\nname = 'a b'\nkey = 'a'", "key 1: name must have"),
        ("[[key]]\nname = 'a'", "key 1: give either key or sha256"),
        ("[[key]]\nname = 'a'\nkey = 'a'\nsha256 = 'b'", "key 1: give either key or sha256"),
        ("[[key]]\nname = 'a'\nkey = ' '", "key 1: key must be a string that is not empty"),
        ("[[key]]\nname = 'a'\nsha256 = 'SECRET'", "key 1: sha256 must have 64"),
        ("[[key]]\nname = 'a'\nkey = 'a'\nmodels = []", "key 1: models must be a list of served names"),
        ("[[key]]\nname = 'a'\nkey = 'a'\nmodels = 'm'", "key 1: models must be a list of served names"),
        ("[[key]]\nname = 'a'\nkey = 'a'\nrpm = 3", "key 1: 'rpm' is not a key here; known: name, key"),
        ("[[key]]\nname = 'a'\nkey = 'a'\nrequests_per_minute = 0", "requests_per_minute must be a whole"),
        ("[[key]]\nname = 'a'\nkey = 'a'\ntokens_per_minute = '9'", "tokens_per_minute must be a whole"),
        (
            "[[key]]\nname = 'a'\nkey = 'a'\n[[key]]\nname = 'a'\nkey = 'b'",
            "key 2: its name is another",
        ),
        ("[[key]]\nname = 'a'\nkey = 'a'\n[[key]]\nname = 'b'\nkey = 'a'", "key 2: it is the same key as"),
        ("[[key]", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_table_and_without_its_keys(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        keys_of(written(tmp_path, text))
    assert "SECRET" not in str(refused.value)


async def test_a_key_may_ask_the_models_that_it_names_and_sees_no_others(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.further = {"/v1/embeddings": ("application/json", b"{}")}
    async with serving(upstream.url, api_keys_file=written(tmp_path, TWO), upstream_poll_s=600) as gateway:
        upstream.forget()
        for path, body in (
            ("/v1/chat/completions", WORDS),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/responses", {"input": "a"}),
            ("/v1/messages", WORDS),
            ("/v1/embeddings", {"input": "a"}),
        ):
            refused = await gateway.post({**body, "model": ADAPTER}, path, **LAB)
            assert refused.status in (200, 404), path
        upstream.forget()
        refused = await gateway.post({**WORDS, "model": ADAPTER}, **ONE)
        assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
        assert refused.error["message"].endswith(f"it may ask {BASE}")
        form = await gateway.post(
            b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n',
            "/v1/audio/transcriptions",
            content_type="multipart/form-data; boundary=x",
            **ONE,
        )
        assert (form.status, form.error["code"]) == (403, "model_not_allowed")
        assert set(upstream.paths) <= {"/v1/models"}  # the gateway's own looks
        seen = [entry["id"] for entry in (await gateway.get("/v1/models", **ONE)).json["data"]]
        assert seen == [BASE]
        assert (await gateway.get(f"/v1/models/{ADAPTER}", **ONE)).status == 403
        assert len((await gateway.get("/v1/models", **LAB)).json["data"]) == 2


async def test_requests_a_minute_are_limited_for_each_key_and_openai_s_headers_say_so(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    text = TWO.replace("tokens_per_minute = 100", "")
    async with serving(upstream.url, api_keys_file=written(tmp_path, text)) as gateway:
        left = []
        for _ in range(3):
            reply = await gateway.post(WORDS, **ONE)
            left.append(reply.headers["x-ratelimit-remaining-requests"])
        assert (reply.status, left) == (200, ["2", "1", "0"])
        assert reply.headers["x-ratelimit-limit-requests"] == "3"
        assert 0 < float(reply.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        upstream.forget()
        refused = await gateway.post(WORDS, **ONE)
        assert (refused.status, refused.error["code"], upstream.calls) == (429, "rate_limit_exceeded", [])
        assert refused.error["type"] == "requests"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "x-should-retry" not in refused.headers
        assert gateway.value("modint_admission_rejections_total", reason="rate_limit") == 1
        other = await gateway.post(WORDS, **LAB)
        assert (other.status, [name for name in other.headers if "ratelimit" in name]) == (200, [])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/chat/completions", chat(stream=True)),
        ("/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True})),
        ("/v1/chat/completions", WORDS),
        ("/v1/chat/completions", {**WORDS, "stream": True}),
        ("/v1/responses", {"model": BASE, "input": "What is two plus three?"}),
        ("/v1/responses", {"model": BASE, "input": "What is two plus three?", "stream": True}),
        ("/v1/embeddings", {"model": BASE, "input": "a"}),
    ],
)
async def test_tokens_a_minute_are_limited_whole_and_streamed(
    upstream: FakeUpstream, tmp_path: Path, path: str, body: JSON
) -> None:
    upstream.responses = True
    upstream.further = {"/v1/embeddings": ("application/json", b'{"usage": {"prompt_tokens": 42}}')}
    text = TWO.replace("requests_per_minute = 3", "")
    async with serving(upstream.url, api_keys_file=written(tmp_path, text)) as gateway:
        left = []
        for _ in range(3):  # of 42 tokens each
            reply = await gateway.post(body, path, **ONE)
            assert reply.status == 200
            left.append(int(reply.headers["x-ratelimit-remaining-tokens"]))
        assert left == [100, 58, 16]
        refused = await gateway.post(body, path, **ONE)
    assert (refused.status, refused.error["type"]) == (429, "tokens")
    asks = (body.get("stream_options") or {}).get("include_usage", False)
    if body.get("stream") and "messages" in body:
        assert (b'"usage"' in reply.body) is asks


async def test_a_new_minute_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, client = RateLimits(), Client("digest", requests_per_minute=1)
    await limits.admit(client)
    with pytest.raises(RateLimitError):
        await limits.admit(client)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert (await limits.admit(client))["x-ratelimit-remaining-requests"] == "0"


async def test_the_file_is_read_again_and_a_bad_one_changes_nothing(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream.url, api_keys_file=written(tmp_path, "key-one\n")) as gateway:
        assert not gateway.gateway.keys.are_several
        assert (await gateway.post(WORDS, **LAB)).status == 401
        written(tmp_path, "key-one\nkey-two\n")
        gateway.gateway.reload_keys()
        assert (await gateway.post(WORDS, **LAB)).status == 200
        assert upstream.calls[-1]["cache_salt"], "two clients share no prefix cache"
        assert places_of_one(gateway) == 128
        written(tmp_path, "")
        with caplog.at_level(logging.ERROR, "modint_server"):
            gateway.gateway.reload_keys()
        assert "keys_not_reloaded" in caplog.messages
        assert (await gateway.post(WORDS, **LAB)).status == 200


def places_of_one(gateway: Running) -> int:
    """How many of the 256 requests in flight one key may have."""
    held, taken = gateway.gateway.pipeline.places, 0
    while held.may_take("one"):
        held.take("one")
        taken += 1
    for _ in range(taken):
        held.give_back("one")
    return taken


async def test_the_log_names_the_key_and_does_not_hold_it(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream.url, api_keys_file=written(tmp_path, TWO)) as gateway:
        with caplog.at_level(logging.INFO, "modint_server"):
            await gateway.post(WORDS, **ONE)
    (line,) = [record.fields for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert line["key"] == "shop"
    assert "key-one" not in json.dumps(line)
    assert digest_of("key-one") not in json.dumps(line)


def test_a_running_gateway_reads_its_keys_again_on_sighup(
    model: Path,  # noqa: F811
    adapter: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = written(tmp_path, TWO)
    monkeypatch.setenv("MODINT_API_KEYS_FILE", str(file))
    with process("none", model, adapter) as child:
        child.until("try")
        written(tmp_path, TWO.replace("lab", "attic"))
        child.process.send_signal(signal.SIGHUP)
        assert json.loads(child.until("keys_reloaded"))["keys"] == 2
        child.process.send_signal(signal.SIGTERM)
        assert child.ended()[0] == 0
