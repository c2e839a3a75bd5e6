"""What one key sends does not change what another key is told, nor how soon."""

from typing import Any

import pytest

from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import Answer, FakeUpstream, is_main, misled

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
