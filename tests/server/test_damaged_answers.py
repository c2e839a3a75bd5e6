"""Whatever an engine puts beside its answer, the client gets the answer."""

import json
from typing import Any

import pytest

from tests.server.conftest import Running, chat
from tests.server.fake_upstream import FakeUpstream, is_main
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
