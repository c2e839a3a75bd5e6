"""Probes give way before answers do; a policy that says so serves nothing without a verdict."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import chat, serving
from tests.server.fake_upstream import BASE, Answer, FakeUpstream, is_main, misled
from tests.server.test_mitigation import with_policy
from tests.server.test_streams_and_faults import until

CLOSED = "action = 'abstain'\nunscored = 'abstain'"
IMAGE = {"relevant": "image"}


async def test_a_busy_gateway_leaves_probes_out_and_says_so(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, delay_s=0.5)
    async with serving(upstream.url, max_in_flight=8, shed_probes_at=0.5) as gateway:
        upstream.forget()
        sent = [asyncio.ensure_future(gateway.post(chat(modint=IMAGE))) for _ in range(8)]
        await until(lambda: sum(map(is_main, upstream.calls)) == 8)
        replies = await asyncio.gather(*sent)
        assert [reply.status for reply in replies] == [200] * 8
        reasons = [reply.json["modint"]["reason"] for reply in replies]
        assert reasons.count("overload") == 4
        assert gateway.value("modint_probe_skipped_total", model=BASE, reason="overload") == 4
        assert sum(not is_main(body) for body in upstream.calls) == 4 * 3


async def test_a_busy_key_loses_its_own_probes_and_no_other_key_does(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, delay_s=2.0)
    settings: Any = {"api_keys": "key-one,key-two", "max_in_flight": 32, "shed_probes_at": 0.5}
    async with serving(upstream.url, **settings) as gateway:
        upstream.forget()
        keys = ["key-one"] * 12 + ["key-two"]
        sent = []
        for number, key in enumerate(keys):
            sent.append(
                asyncio.ensure_future(gateway.post(chat(modint=IMAGE), authorization=f"Bearer {key}"))
            )
            await until(lambda: sum(map(is_main, upstream.calls)) == number + 1)  # noqa: B023
        replies = await asyncio.gather(*sent)
    reasons = [reply.json["modint"]["reason"] for reply in replies]
    assert [reason == "overload" for reason in reasons] == [False] * 8 + [True] * 4 + [False]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_closed_policy_withholds_an_answer_whose_probes_fail(
    upstream: FakeUpstream, tmp_path: Path, stream: bool
) -> None:
    async with with_policy(upstream, tmp_path, f"{CLOSED}\nabstain_as = 'error'") as gateway:
        upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="500")
        reply = await gateway.post(chat(modint=IMAGE, stream=stream))
    assert (reply.status, reply.json["error"]["code"]) == (422, "modality_interference")
    report: dict[str, Any] = reply.json["modint"]
    assert (report["verdict"], report["action"]) == ("unscored", "abstain")


async def test_a_closed_policy_withholds_what_is_not_probed_for_want_of_room(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, delay_s=0.5)
    async with with_policy(upstream, tmp_path, CLOSED, max_in_flight=4, shed_probes_at=0.5) as gateway:
        upstream.forget()
        sent = [asyncio.ensure_future(gateway.post(chat(modint=IMAGE))) for _ in range(4)]
        reports = [reply.json["modint"] for reply in await asyncio.gather(*sent) if reply.status == 422]
    assert [(report["verdict"], report["reason"]) for report in reports] == [("skipped", "overload")] * 2


async def test_a_closed_policy_asks_nothing_where_nothing_can_be_judged(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.max_logprobs = 0
    async with with_policy(upstream, tmp_path, CLOSED, regenerate="off") as gateway:
        reply = await gateway.post(chat(modint=IMAGE))
    assert (reply.status, upstream.calls) == (422, [])


async def test_an_open_policy_serves_it(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with with_policy(upstream, tmp_path, "action = 'abstain'") as gateway:
        upstream.script = lambda body: misled(body) if is_main(body) else Answer("", fault="500")
        reply = await gateway.post(chat(modint=IMAGE))
    assert reply.json["choices"][0]["message"]["content"] == "blue"
