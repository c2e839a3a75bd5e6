"""What one key sends does not change what another key is told, nor how soon."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from modint_server.request.gateway import PAUSE_S
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, Answer, FakeUpstream, is_main, misled, text_of
from tests.server.test_damaged_answers import refusing_logprobs
from tests.server.test_streams_and_faults import until

JSON = dict[str, Any]
KEYS = "key-one,key-two"


async def ask(gateway: Running, key: str, **fields: Any) -> JSON:
    """The `modint` object of an answer to a question about the picture."""
    modint = {"relevant": "image", **fields.pop("modint", {})}
    reply = await gateway.post(chat(modint=modint, **fields), authorization=f"Bearer {key}")
    assert reply.status == 200, reply.body
    report: JSON = reply.json["modint"]
    return report


def noisy(body: JSON) -> Answer:
    """A model that answers the same request otherwise when it is asked again."""
    if is_main(body) and body.get("temperature") == 5:
        return Answer("blue", {"blue": 0.999, "red": 0.001})
    if is_main(body) and body["max_tokens"] == 2:
        return Answer("red", {"red": 0.999, "blue": 0.001})
    return misled(body)


@pytest.mark.parametrize("every", [1, 100])
async def test_a_noisy_request_of_one_key_leaves_the_verdicts_of_another_as_they_were(
    upstream: FakeUpstream, every: int
) -> None:
    upstream.script = noisy
    async with serving(upstream.url, api_keys=KEYS, noop_every=every) as gateway:
        attack = await ask(gateway, "key-one", temperature=5, modint={"probes": ["noop"]})
        assert attack["noise"] > 0.9
        upstream.script = misled
        assert (await ask(gateway, "key-two"))["verdict"] == "flagged"


async def test_a_noop_that_a_client_asks_for_measures_nothing(upstream: FakeUpstream) -> None:
    upstream.script = noisy
    async with serving(upstream.url, noop_every=0) as gateway:
        await ask(gateway, "none", temperature=5, modint={"probes": ["noop"]})
        upstream.script = misled
        assert (await ask(gateway, "none"))["verdict"] == "flagged"


async def test_rungs_of_one_key_that_take_long_leave_room_for_the_verdicts_of_another(
    upstream: FakeUpstream,
) -> None:
    settings: JSON = {
        "api_keys": KEYS,
        "max_probes_in_flight": 8,
        "max_rungs_in_flight": 8,
        "probe_deadline_s": 1.0,
    }
    upstream.script = lambda body: replace(misled(body), fault="hang" if body["model"] == ADAPTER else None)
    async with serving(upstream.url, **settings) as gateway:
        slow = {"modint": {"action": "escalate"}}
        attacks = [asyncio.ensure_future(ask(gateway, "key-one", **slow)) for _ in range(12)]
        await until(lambda: sum(body["model"] == ADAPTER for body in upstream.calls) >= 4)
        victim = await ask(gateway, "key-two", modint={"action": "abstain"})
        assert (victim["verdict"], victim["action"]) == ("flagged", "abstain")
        for attack in attacks:
            attack.cancel()


async def test_hanging_probes_of_one_key_leave_slots_for_another(upstream: FakeUpstream) -> None:
    def script(body: JSON) -> Answer:
        attack = "attack" in text_of(body) and not is_main(body)
        return replace(misled(body), fault="hang" if attack else None)

    upstream.script = script
    async with serving(upstream.url, api_keys=KEYS, max_probes_in_flight=8, probe_deadline_s=60) as gateway:
        attack = chat(modint={"relevant": "image"})
        attack["messages"][0]["content"][2]["text"] = "What colour is the shape under attack?"
        attacks = [
            asyncio.ensure_future(gateway.post(attack, authorization="Bearer key-one")) for _ in range(8)
        ]
        await until(lambda: len(upstream.calls) >= 8 + 4)
        async with asyncio.timeout(3):
            assert (await ask(gateway, "key-two"))["verdict"] == "flagged"
        for one in attacks:
            one.cancel()


async def test_second_tries_of_one_key_leave_those_of_another(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys=KEYS) as gateway:
        upstream.script = refusing_logprobs("500")
        for _ in range(12):
            await gateway.post(chat(modint={"relevant": "image"}), authorization="Bearer key-one")
        assert (await ask(gateway, "key-two"))["reason"] == "upstream_error"


async def test_slow_bodies_of_one_key_leave_places_for_another(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys=KEYS, max_in_flight=8) as gateway:
        writers = [await half_sent(gateway, "key-one") for _ in range(8)]
        await until(lambda: gateway.gateway.in_flight == 4)
        for _ in range(3):
            assert (await ask(gateway, "key-two"))["verdict"] == "flagged"
        refused: JSON = {"name": "modint_admission_rejections_total", "reason": "key_share"}
        await until(lambda: gateway.value(**refused) == 4)
        for writer in writers:
            writer.close()


async def test_a_key_that_asks_again_at_once_is_refused_a_few_times_a_second(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys=KEYS, max_in_flight=8) as gateway:
        writers = [await half_sent(gateway, "key-one") for _ in range(4)]
        await until(lambda: gateway.gateway.in_flight == 4)
        began = time.monotonic()
        for _ in range(4):
            assert (await gateway.post(chat(), authorization="Bearer key-one")).status == 503
        assert time.monotonic() - began >= 4 * PAUSE_S
        for writer in writers:
            writer.close()


async def half_sent(gateway: Running, key: str) -> asyncio.StreamWriter:
    """A connection on which the head of a request has arrived, and a body that never ends."""
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    writer.write(head.encode() + b"content-length: 1000\r\n\r\n{")
    await writer.drain()
    return writer


async def test_a_key_alone_may_use_every_place(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys="key-one", max_in_flight=4) as gateway:
        writers = [await half_sent(gateway, "key-one") for _ in range(4)]
        await until(lambda: gateway.gateway.in_flight == 4)
        for writer in writers:
            writer.close()


async def test_each_key_has_a_prefix_cache_of_its_own(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, api_keys=KEYS) as gateway:
        upstream.forget()
        salts = []
        for key in ("key-one", "key-two", "key-one"):
            await ask(gateway, key)
            salts.append({body["cache_salt"] for body in upstream.calls})
            upstream.forget()
    assert [len(of_a_request) for of_a_request in salts] == [1, 1, 1]
    assert salts[0] == salts[2] != salts[1]
    assert not any("key" in salt for salt in set().union(*salts))


@pytest.mark.parametrize("settings", [{"api_keys": "key-one"}, {"api_keys": KEYS, "cache_by_key": "off"}])
async def test_a_key_alone_needs_no_salt(upstream: FakeUpstream, settings: JSON) -> None:
    async with serving(upstream.url, **settings) as gateway:
        upstream.forget()
        await ask(gateway, "key-one")
    assert not any("cache_salt" in body for body in upstream.calls)
