"""Whatever an engine puts beside its answer, the client gets the answer."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.server.conftest import Running, chat
from tests.server.fake_upstream import Answer, FakeUpstream, is_main, misled
from tests.server.test_mitigation import chunks, text_of

JSON = dict[str, Any]
USAGES: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -1},
    "beyond 64 bits": {"prompt_tokens": 10**20, "completion_tokens": 10**20},
    "beyond a float's integers": {"prompt_tokens": 1e308, "completion_tokens": 1e308},
    "a sentence": "forty tokens",
    "a list": [1, 2],
    "of words": {"prompt_tokens": "many", "prompt_tokens_details": "none"},
}


def reporting(usage: Any, *, main: bool) -> Any:
    """Damage: this usage in the main answer, or in the answers to all views."""
    return lambda body, answer: {**answer, "usage": usage} if is_main(body) is main else answer


async def answered(gateway: Running, *, stream: bool, **fields: Any) -> str:
    """The text that a client reads; fails if it reads anything else than a complete answer."""
    reply = await gateway.post(chat(stream=stream, modint={"relevant": "image"}, **fields))
    assert reply.status == 200, reply.body
    if not stream:
        return str(reply.json["choices"][0]["message"]["content"])
    frames = chunks(reply.body)
    assert not [frame for frame in frames if "error" in frame]
    assert reply.body.endswith(b"data: [DONE]\n\n")
    return text_of(frames)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("name", USAGES)
async def test_an_odd_usage_costs_no_answer(
    running_gateway: Running, upstream: FakeUpstream, name: str, main: bool, stream: bool
) -> None:
    upstream.damage = reporting(USAGES[name], main=main)
    for _ in range(2):  # the second on the same connection
        assert await answered(running_gateway, stream=stream) == "blue"
    ok = {"model": "tinyworld-base", "adapter": "none", "route": "chat", "outcome": "ok"}
    assert running_gateway.value("modint_requests_total", **ok) == 2


async def test_an_odd_usage_of_a_rung_costs_no_answer(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    usage = {"prompt_tokens": 10**20, "completion_tokens": -3}
    upstream.damage = lambda body, answer: {**answer, "usage": usage}
    reply = await running_gateway.post(chat(modint={"relevant": "image", "action": "escalate"}))
    assert reply.status == 200
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "blue"


def entry(**fields: Any) -> JSON:
    """The log-probabilities of an answer whose one token has these fields."""
    listed = [{"token": "blue", "logprob": -0.1}]
    return {"content": [{"token": "blue", "logprob": -0.1, "bytes": None, "top_logprobs": listed, **fields}]}


LOGPROBS: dict[str, Any] = {
    "null": entry(top_logprobs=[{"token": "blue", "logprob": None}]),
    "in words": entry(top_logprobs=[{"token": "blue", "logprob": "likely"}]),
    "without a token": {"content": [{"logprob": -0.1, "top_logprobs": [{"logprob": -0.1}]}]},
    "above every number": entry(logprob=1e308, top_logprobs=[{"token": "blue", "logprob": 1e308}]),
    "a sentence": "none",
    "a list": [1],
    "of numbers": {"content": [1, 2]},
    "deep": {"content": json.loads("[" * 300 + "]" * 300)},
}


def in_choices(**fields: Any) -> Any:
    """Damage: these fields in every choice of the main answer that has log-probabilities."""

    def damage(body: JSON, answer: JSON) -> JSON:
        if not is_main(body):
            return answer
        damaged = [{**c, **fields} if c["logprobs"] else c for c in answer["choices"]]
        return {**answer, "choices": damaged}

    return damage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", LOGPROBS)
async def test_odd_log_probabilities_cost_no_answer(
    running_gateway: Running, upstream: FakeUpstream, name: str, stream: bool
) -> None:
    upstream.damage = in_choices(logprobs=LOGPROBS[name])
    assert await answered(running_gateway, stream=stream) == "blue"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("action", ["annotate", "neutralise"])  # the second holds the stream
@pytest.mark.parametrize("index", [{}, [0], "0", None])
async def test_an_odd_number_of_an_answer_costs_none(
    running_gateway: Running, upstream: FakeUpstream, index: Any, action: str, count: int
) -> None:
    def damage(body: JSON, answer: JSON) -> JSON:
        return {**answer, "choices": [{**each, "index": index} for each in answer["choices"]]}

    upstream.damage = damage
    modint = {"relevant": "image", "action": action}
    reply = await running_gateway.post(chat(stream=True, n=count, modint=modint))
    frames = chunks(reply.body)
    assert (reply.status, [frame for frame in frames if "error" in frame]) == (200, [])
    assert text_of(frames) == "blue" * count


async def test_what_failed_beside_an_answer_is_counted(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.damage = in_choices(logprobs=LOGPROBS["null"])
    reply = await running_gateway.post(chat(stream=True, modint={"relevant": "image"}))
    report = chunks(reply.body)[-1]["modint"]
    assert (report["verdict"], report["reason"]) == ("unscored", "incomplete")
    assert running_gateway.value("modint_step_failures_total", step="reading") == 1


def refusing_logprobs(fault: str | None) -> Any:
    """A model that fails, for the client's own request, as soon as it is asked for log-probabilities."""

    def script(body: JSON) -> Answer:
        answer = misled(body)
        return replace(answer, fault=fault) if is_main(body) and body.get("logprobs") else answer

    return script


def nan(body: JSON, answer: JSON) -> JSON:
    """Damage: NaN, which is no JSON, beside every log-probability."""
    return {**answer, "x": float("nan")} if body.get("logprobs") else answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["500", "html", "html 200", "NaN"])
async def test_what_breaks_on_our_additions_is_asked_without_them(
    running_gateway: Running, upstream: FakeUpstream, fault: str, stream: bool
) -> None:
    if fault == "NaN" and not stream:
        upstream.damage = nan
    else:
        upstream.script = refusing_logprobs("500" if fault == "NaN" else fault)
    reply = await running_gateway.post(chat(stream=stream, modint={"relevant": "image"}))
    assert reply.status == 200
    report = chunks(reply.body)[-1]["modint"] if stream else reply.json["modint"]
    assert (report["verdict"], report["reason"]) == ("unscored", "upstream_error")
    assert sum(is_main(body) for body in upstream.calls) == 2


@pytest.mark.parametrize("fault", ["429", "close"])
async def test_what_is_no_fault_of_our_additions_is_not_asked_again(
    running_gateway: Running, upstream: FakeUpstream, fault: str
) -> None:
    upstream.script = refusing_logprobs(fault)
    reply = await running_gateway.post(chat(modint={"relevant": "image"}))
    assert reply.status in (429, 502)
    assert sum(is_main(body) and "logprobs" not in body for body in upstream.calls) == 0


async def test_a_broken_engine_is_asked_again_for_a_twentieth_of_the_traffic(
    running_gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.script = lambda body: Answer("blue", {"blue": 0.9}, fault="500" if is_main(body) else None)
    for _ in range(40):
        await running_gateway.post(chat(modint={"relevant": "image"}))
    asked = sum(is_main(body) for body in upstream.calls)
    assert asked == 40 + 5 + 1  # five in a row, and after them a twentieth of 35
