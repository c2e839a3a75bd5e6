"""The self-test: an adapter without effect and base answers taken from an adapter are seen, and named."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from modint_server.engine.selftest import AT_ONCE, distance, requests, shift
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, JSON, Answer, FakeUpstream

OURS, THEIRS = {"red": 0.9, "blue": 0.05}, {"red": 0.05, "blue": 0.9}


def adapted(body: JSON) -> Answer:
    """A base that says red and adapters that say blue."""
    return Answer("red", OURS) if body["model"] == BASE else Answer("blue", THEIRS)


def without_effect(body: JSON) -> Answer:
    return Answer("red", OURS)


async def settled(gateway: Running) -> JSON:
    """`/readyz` once every adapter has been tested."""
    attachment = gateway.gateway.attachment

    def done(readiness: JSON) -> bool:
        names = {model.id for model in attachment.models if model.parent}
        passed = any(result["ok"] for result in readiness["adapters"].values())
        mixed = attachment.selftest.mixed is not None or not passed
        return bool(names) and set(readiness["adapters"]) == names and mixed

    return await until(gateway, done)


async def until(gateway: Running, done: Callable[[JSON], bool]) -> JSON:
    """`/readyz` as soon as `done` is true of it."""
    for _ in range(1000):
        readiness: JSON = (await gateway.get("/readyz")).json
        if done(readiness):
            return readiness
        await asyncio.sleep(0.01)
    raise AssertionError(f"it stayed at {readiness}")


def labels(adapter: str = ADAPTER) -> dict[str, str]:
    return {"model": BASE, "adapter": adapter}


async def test_an_adapter_that_changes_answers_passes(upstream: FakeUpstream) -> None:
    upstream.script = adapted
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        readiness = await settled(gateway)
        result = readiness["adapters"][ADAPTER]
        assert (readiness["status"], result["ok"], result["problem"], readiness["notes"]) == (
            "ok",
            True,
            None,
            [],
        )
        # (0.9, 0.05, tail 0.05) against (0.05, 0.9, tail 0.05): JS = 0.95 - 0.95 * H(0.9/0.95)
        assert result["selftest_divergence"] == pytest.approx(0.95 - 0.95 * 0.29747, abs=1e-4)
        assert gateway.value("modint_adapter_selftest_ok", **labels()) == 1
        assert gateway.value("modint_adapter_selftest_divergence_ratio", **labels()) == pytest.approx(
            result["selftest_divergence"]
        )
        assert gateway.value("modint_base_beside_adapters_ok", model=BASE) == 1


async def test_what_it_costs_is_known(upstream: FakeUpstream) -> None:
    upstream.script = adapted
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        await settled(gateway)
    capability, base, adapter, mixed = 3, 3 * 3, 3, 2 * AT_ONCE
    assert len(upstream.calls) == capability + base + adapter + mixed
    assert {body["max_tokens"] for body in upstream.calls} == {1, 2}


async def test_an_adapter_without_effect_keeps_the_gateway_from_being_ready(upstream: FakeUpstream) -> None:
    upstream.script = without_effect
    async with serving(upstream.url, ready=False, adapter_selftest="require") as gateway:
        readiness = await settled(gateway)
        assert readiness["status"] == "not ready"
        (reason,) = readiness["reasons"]
        assert reason.startswith(f"adapter '{ADAPTER}': it answers exactly as the base")
        assert "modint-guard adapters doctor" in reason
        assert gateway.value("modint_adapter_selftest_ok", **labels()) == 0
        assert gateway.value("modint_adapter_selftest_divergence_ratio", **labels()) == 0
        refused = await gateway.post(chat(model=ADAPTER))
        assert (refused.status, refused.error["code"]) == (503, "not_ready")
        assert (await gateway.post(chat())).status == 200


async def test_attached_it_is_ready_and_says_which_adapter_has_no_effect(upstream: FakeUpstream) -> None:
    upstream.script = without_effect
    async with serving(upstream.url, adapter_selftest="auto") as gateway:
        readiness = await settled(gateway)
        assert (readiness["status"], readiness["reasons"]) == ("ok", [])
        assert readiness["notes"][0].startswith(f"adapter '{ADAPTER}': it answers exactly as the base")
        assert (await gateway.post(chat(model=ADAPTER))).status == 200


async def test_an_effect_on_pictures_alone_is_one(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: (
        adapted(body) if isinstance(body["messages"][0]["content"], list) else Answer("red", OURS)
    )
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        assert (await settled(gateway))["adapters"][ADAPTER]["ok"]


async def test_the_engines_own_noise_is_no_effect(upstream: FakeUpstream) -> None:
    turns = iter(range(10_000))

    def noisy(body: JSON) -> Answer:
        return Answer("red", {"red": 0.9 + 1e-4 * (next(turns) % 2), "blue": 0.05})

    upstream.script = noisy
    async with serving(upstream.url, adapter_selftest="report") as gateway:
        assert not (await settled(gateway))["adapters"][ADAPTER]["ok"]


async def test_a_small_effect_on_a_quiet_engine_is_one(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: Answer("red", {"red": 0.9 if body["model"] == BASE else 0.90001})
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        assert (await settled(gateway))["adapters"][ADAPTER]["ok"]


async def test_base_answers_taken_from_an_adapter_are_seen(upstream: FakeUpstream) -> None:
    """vLLM's CPU runner with as many slots as adapters: in a mixed batch the base answers as the last one."""

    def mixed_up(body: JSON) -> Answer:
        both = upstream.open > 1
        answer = adapted({**body, "model": ADAPTER}) if both else adapted(body)
        return Answer(answer.text, answer.top, delay_s=0.05)

    upstream.script = mixed_up
    async with serving(upstream.url, adapter_selftest="report") as gateway:
        readiness = await settled(gateway)
        assert readiness["adapters"][ADAPTER]["ok"]
        assert "base answers beside adapter traffic were an adapter's" in readiness["notes"][0]
        assert "--max-loras" in readiness["notes"][0]
        assert gateway.value("modint_base_beside_adapters_ok", model=BASE) == 0


async def test_an_adapter_that_the_engine_refuses_is_named_and_asked_again_later(
    upstream: FakeUpstream,
) -> None:
    upstream.script = lambda body: (
        Answer("", fault="500") if body["model"] == ADAPTER else Answer("red", OURS)
    )
    async with serving(upstream.url, ready=False, adapter_selftest="require") as gateway:
        readiness = await settled(gateway)
        assert readiness["reasons"] == [f"adapter '{ADAPTER}': the engine answers 500 to a request for it"]
        upstream.script = adapted
        gateway.gateway.attachment._retry_at = 0.0
        await until(gateway, lambda readiness: readiness["status"] == "ok")


async def test_an_adapter_loaded_later_is_tested_and_one_unloaded_is_forgotten(
    upstream: FakeUpstream,
) -> None:
    upstream.script = adapted
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        await settled(gateway)
        upstream.model_list.append({"id": "late", "parent": BASE})
        await until(gateway, lambda readiness: "late" in readiness["adapters"])
        assert gateway.value("modint_adapter_selftest_ok", **labels("late")) == 1
        del upstream.model_list[1:]
        await until(gateway, lambda readiness: not readiness["adapters"])
        assert gateway.value("modint_adapter_selftest_ok", **labels("late")) is None
        assert gateway.value("modint_requests_total", **labels("late"), route="chat", outcome="ok") == 0


async def test_without_log_probabilities_nothing_can_be_tested_and_nothing_is_claimed(
    upstream: FakeUpstream,
) -> None:
    upstream.logprobs = False
    async with serving(upstream.url, adapter_selftest="require") as gateway:
        readiness = (await gateway.get("/readyz")).json
        assert (readiness["status"], readiness["adapters"]) == ("ok", {})
        assert gateway.value("modint_adapter_selftest_ok", **labels()) is None


async def test_an_engine_that_dies_in_the_self_test_is_an_engine_that_is_gone(upstream: FakeUpstream) -> None:
    upstream.script = lambda body: (
        Answer("", fault="close") if body["model"] == ADAPTER else Answer("red", OURS)
    )
    async with serving(upstream.url, ready=False, adapter_selftest="require") as gateway:
        await until(gateway, lambda readiness: "cannot be reached" in str(readiness["reasons"]))


def test_shift_is_the_largest_change_of_a_shared_token() -> None:
    assert shift({"a": -1.0, "b": -2.0}, {"a": -1.5, "b": -2.25, "c": -9.0}) == 0.5
    assert shift({"a": -1.0}, {"b": -1.0}) == float("inf")
    assert shift({}, {}) == 0.0


def test_distance_is_half_the_summed_change_of_probability() -> None:
    halves: dict[str, Any] = {"a": -0.6931471805599453}
    assert distance(halves, halves) == 0.0
    assert distance(halves, {"b": -0.6931471805599453}) == pytest.approx(0.5)


def test_an_engine_without_images_is_asked_in_words_only() -> None:
    assert [isinstance(body["messages"][0]["content"], str) for body in requests(5, images=False)] == [
        True
    ] * 2
    assert len(requests(5, images=True)) == 3


async def test_an_adapter_named_like_a_content_part_is_told_of(upstream: FakeUpstream) -> None:
    upstream.model_list[1]["id"] = "image"
    async with serving(upstream.url) as gateway:
        readiness = (await gateway.get("/readyz")).json
    assert readiness["status"] == "ok"
    assert any("vLLM would answer the base's requests" in note for note in readiness["notes"])
