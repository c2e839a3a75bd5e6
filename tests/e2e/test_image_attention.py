"""Attention to pictures scaled inside the real engine: the probabilities of transformers, also from its
cache, beside other requests, and under an adapter."""

import asyncio
import math
from typing import Any

import pytest
from peft import PeftModel

from modint_guard.data.item import Item
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.runner import request_for
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import JSON
from modint_training.loop.predict import first_logits
from modint_training.models.image_attention import image_attention
from modint_training.models.loading import load_base
from modint_training.tinyworld import suite
from tests.e2e.engines import GAIN

pytestmark = [pytest.mark.e2e, pytest.mark.trains, pytest.mark.needs("libnuma1")]


def items() -> list[Item]:
    lied = [suite.perturbed(item, "misleading_description") for item in suite.items("image-heavy", "test", 8)]
    shown = [suite.perturbed(item, "contradicting_image") for item in suite.items("text-heavy", "test", 4)]
    return [*lied, *shown, *suite.items("text-heavy", "test", 4)]  # the last without a picture


def asked(url: str, model: str) -> list[JSON]:
    """Every item twice, all at once: the second time its keys may come from the cache."""
    wanted: JSON = {"logprobs": True, "top_logprobs": 5, "return_tokens_as_token_ids": True}
    bodies = [{**request_for(item, model, **wanted), "modint": {"mode": "off"}} for item in items()]

    async def every() -> list[JSON]:
        async with Endpoint(url, timeout_s=300) as endpoint:
            return list(await asyncio.gather(*(endpoint.complete(body) for body in [*bodies, *bodies])))

    return asyncio.run(every())


def probabilities(completion: JSON) -> dict[int, float]:
    first = completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {int(one["token"].removeprefix("token_id:")): math.exp(one["logprob"]) for one in first}


@pytest.mark.parametrize("name", [BASE, ADAPTER])
def test_the_engine_scales_as_transformers_does_and_not_a_little(scaled_url: str, name: str) -> None:
    net, processor = load_base(str(bundled(BASE)))
    model: Any = net if name == BASE else PeftModel.from_pretrained(net, bundled(ADAPTER))
    with image_attention(model, GAIN):
        expected = first_logits(model, processor, items()).softmax(-1)
    plain = first_logits(model, processor, items()).softmax(-1)
    moved = (expected - plain).abs().amax(-1)
    assert (moved[:12] > 0.01).sum() >= 3  # else parity would show nothing
    assert moved[12:].max() < 1e-6  # where there is no picture
    found = [probabilities(completion) for completion in asked(f"{scaled_url}/v1", name)]
    for place, known in enumerate(found):
        ours = expected[place % len(items())]
        assert all(abs(float(ours[token]) - share) < 2e-3 for token, share in known.items()), place


def test_a_verdict_says_so(scaled_url: str) -> None:
    async def judged() -> JSON:
        async with Endpoint(f"{scaled_url}/v1", timeout_s=300) as endpoint:
            return await endpoint.complete(request_for(items()[0], BASE))

    notes = asyncio.run(judged())["modint"]["notes"]
    assert any(f"scales its attention to pictures by {GAIN:g}" in note for note in notes)
