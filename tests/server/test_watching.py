"""The gateway goes on watching its engine whatever happens to it, and says how it is."""

import asyncio
from typing import Any

import pytest

from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, Answer, FakeUpstream
from tests.server.test_streams_and_faults import until

JSON = dict[str, Any]
OURS, THEIRS = {"red": 0.9, "blue": 0.05}, {"red": 0.05, "blue": 0.9}


def is_test(body: JSON) -> bool:
    """Whether a call belongs to the self-test of an adapter."""
    return bool(body["model"] != BASE and body["max_tokens"] == 2)


async def sees_that_the_engine_is_gone(gateway: Running, upstream: FakeUpstream) -> bool:
    """Whether /readyz tells so soon after the engine lists no models any more."""
    upstream.model_list = None  # type: ignore[assignment]
    await until(lambda: not gateway.gateway.attachment.ready)
    return (await gateway.get("/readyz")).status == 503


async def test_an_adapter_unloaded_while_it_is_tested_ends_no_watching(
    upstream: FakeUpstream,
) -> None:
    upstream.script = lambda body: Answer("red", THEIRS if is_test(body) else OURS, delay_s=0.1)
    async with serving(upstream.url, ready=False, adapter_selftest="report") as gateway:
        await until(lambda: any(is_test(body) for body in upstream.calls))
        upstream.model_list = upstream.model_list[:1]
        assert (await gateway.post(chat(model="unknown"))).status == 404
        await asyncio.sleep(1.5)
        assert await sees_that_the_engine_is_gone(gateway, upstream)
        assert gateway.value("modint_step_failures_total", step="watching") == 0


async def test_odd_log_probabilities_in_a_self_test_end_no_watching(upstream: FakeUpstream) -> None:
    def damage(body: JSON, answer: JSON) -> JSON:
        if is_test(body):
            for listed in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                listed["logprob"] = 1e308
        return answer

    upstream.script, upstream.damage = lambda body: Answer("red", OURS), damage
    async with serving(upstream.url, adapter_selftest="report") as gateway:
        await until(lambda: ADAPTER in gateway.gateway.attachment.selftest.adapters)
        assert await sees_that_the_engine_is_gone(gateway, upstream)


async def test_an_engine_that_hangs_makes_the_gateway_not_ready(upstream: FakeUpstream) -> None:
    async with serving(upstream.url, upstream_poll_timeout_s=0.2) as gateway:
        upstream.models_delay_s = 60
        await until(lambda: not gateway.gateway.attachment.ready)
        reasons = (await gateway.get("/readyz")).json["reasons"]
        assert reasons == ["the engine did not list its models within 0.2 s"]
        async with asyncio.timeout(2):
            assert (await gateway.post(chat(model="unknown"))).status == 404
        upstream.models_delay_s = 0
        await until(lambda: gateway.gateway.attachment.ready)


@pytest.mark.parametrize("fault", ["429", "500", "400"])
async def test_attached_a_refused_self_test_is_a_note(upstream: FakeUpstream, fault: str) -> None:
    upstream.script = lambda body: Answer("red", OURS, fault=fault if body["max_tokens"] == 2 else None)
    async with serving(upstream.url, adapter_selftest="report") as gateway:
        await until(lambda: any(body["max_tokens"] == 2 for body in upstream.calls))
        await asyncio.sleep(0.3)
        ready = await gateway.get("/readyz")
        assert (ready.status, ready.json["reasons"]) == (200, [])
        assert ready.json["notes"] == [f"adapter '{ADAPTER}' is being tested"]
        tested = sum(body["max_tokens"] == 2 for body in upstream.calls)
        await asyncio.sleep(0.3)
        assert sum(body["max_tokens"] == 2 for body in upstream.calls) == tested  # not at every look


async def test_many_adapters_are_tested_a_few_at_a_time(upstream: FakeUpstream) -> None:
    most = 0

    def script(body: JSON) -> Answer:
        nonlocal most
        most = max(most, upstream.open)
        return Answer("red", OURS if body["model"] == BASE else THEIRS, delay_s=0.02)

    names = [f"adapter-{n}" for n in range(20)]
    upstream.model_list = [*upstream.model_list[:1], *({"id": name, "parent": BASE} for name in names)]
    upstream.script = script
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        assert (await gateway.get("/readyz")).json["adapters"].keys() == set(names)
    assert most <= 16
