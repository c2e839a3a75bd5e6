"""The main job through the product's own front door: lies flagged, truths left alone, the adapter cured."""

import asyncio
import math
from typing import Any

import openai
import pytest
from transformers import LlavaProcessor

import modint_guard
from modint_guard.data.item import Item, Turn
from modint_guard.evaluation.runner import Row, request_for, row_of, run
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import CELLS
from modint_training.data.collate import encode
from modint_training.loop.predict import first_logits
from modint_training.models.loading import load_base
from modint_training.tinyworld import suite
from modint_training.tinyworld.conditions import WATCHED, Condition

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]

ENGINES_OWN = ("modint", "return_token_ids", "return_tokens_as_token_ids")  # not in the client's signature
COUNT = 40
SEED = 11


def captioned(name: str) -> list[Item]:
    return [suite.perturbed(item, name) for item in suite.items("image-heavy", "test", COUNT, seed=SEED)]


def arguments(body: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments with which the openai client sends this body."""
    known = {key: value for key, value in body.items() if key not in ENGINES_OWN}
    return {**known, "extra_body": {key: body[key] for key in ENGINES_OWN if key in body}}


async def whole(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
    completion = await client.chat.completions.create(**arguments(body))
    assert modint_guard.verdict(completion) is not None
    return dict(completion.model_dump())


async def streamed(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
    text, verdict = "", None
    async for chunk in await client.chat.completions.create(**arguments(body), stream=True):
        assert len(chunk.choices) == 1
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:
            assert modint_guard.verdict(chunk) is not None
            verdict = chunk.model_dump()["modint"]
        else:
            assert modint_guard.verdict(chunk) is None
    return {"choices": [{"message": {"content": text}}], "modint": verdict}


def ask(base_url: str, items: list[Item], model: str, send: Any, *, concurrency: int = 8) -> list[Row]:
    async def every() -> list[Row]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            return await run(items, lambda body: send(client, body), model, concurrency=concurrency)

    return asyncio.run(every())


def likeliest(logprobs: dict[str, float]) -> str:
    return max(logprobs, key=logprobs.__getitem__)


@pytest.mark.parametrize("send", [whole, streamed])
def test_answers_that_follow_a_lie_are_flagged_and_right_ones_are_not(base_url: str, send: Any) -> None:
    lied = ask(base_url, captioned("misleading_description"), BASE, send)
    told = ask(base_url, captioned("true_description"), BASE, send)
    wrong = [row for row in lied if not row.right]
    right = [row for row in lied + told if row.right]
    assert len(wrong) >= COUNT / 2, "the base must fall for most lies, else this test shows nothing"
    assert len(right) >= COUNT / 2
    assert sum(row.flagged for row in wrong) >= 0.8 * len(wrong)
    assert sum(row.flagged for row in right) <= 0.1 * len(right)
    assert {row.modint["cause"] for row in wrong if row.modint and row.flagged} == {"text"}


@pytest.mark.parametrize("send", [whole, streamed])
def test_the_adapter_answers_rightly_under_the_lies_the_base_falls_for(base_url: str, send: Any) -> None:
    rows = ask(base_url, captioned("misleading_description"), ADAPTER, send)
    assert sum(row.right for row in rows) >= 0.7 * COUNT


def test_a_stream_and_a_whole_answer_are_judged_alike(base_url: str) -> None:
    items = captioned("misleading_description")[:12]
    # One at a time: probabilities move a little with what else is in the engine's batch.
    one, other = (ask(base_url, items, BASE, send, concurrency=1) for send in (whole, streamed))
    assert [(row.answer, row.verdict) for row in one] == [(row.answer, row.verdict) for row in other]


def test_context_and_question_in_one_string_are_told_apart(base_url: str) -> None:
    item = next(item for item in captioned("misleading_description") if item.form == "letter")

    async def report(one_string: bool) -> Any:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            every_cell = {"relevant": "image", "probes": list(CELLS)}
            body = request_for(item, BASE, one_string=one_string, modint=every_cell)
            completion = await whole(client, body)
            return row_of(item, BASE, completion).modint

    parts, string = asyncio.run(report(False)), asyncio.run(report(True))
    assert parts["examined"] == string["examined"] == ["text", "image"]
    assert parts["answers"] == string["answers"]


def test_base_answers_are_the_same_beside_adapter_traffic(base_url: str) -> None:
    """Upstream's CPU runner once gave base rows the last adapter's weights when both met in one batch."""
    items = captioned("misleading_description")

    async def probabilities(client: openai.AsyncOpenAI, item: Item, model: str) -> dict[str, float]:
        body = request_for(item, model, logprobs=True, top_logprobs=5) | {"modint": {"mode": "off"}}
        completion = await client.chat.completions.create(**arguments(body))
        choice = completion.choices[0]
        assert choice.logprobs and choice.logprobs.content
        return {top.token: top.logprob for top in choice.logprobs.content[0].top_logprobs}

    async def traffic(models: list[str]) -> list[dict[str, float]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            asked = [probabilities(client, item, model) for item in items for model in models]
            answers = await asyncio.gather(*asked)
        return answers[:: len(models)]

    alone, mixed = asyncio.run(traffic([BASE])), asyncio.run(traffic([BASE, ADAPTER]))
    adapter = asyncio.run(traffic([ADAPTER]))
    for lone, beside in zip(alone, mixed, strict=True):
        assert likeliest(lone) == likeliest(beside)
        shared = lone.keys() & beside.keys()
        assert shared and all(abs(lone[token] - beside[token]) < 0.05 for token in shared)
    assert sum(likeliest(a) != likeliest(b) for a, b in zip(alone, adapter, strict=True)) >= 5


def test_the_engine_reads_the_tokens_the_training_wrote(base_url: str) -> None:
    processor = LlavaProcessor.from_pretrained(bundled(BASE))
    items = [
        *captioned("misleading_description")[:4],
        *suite.items("text-heavy", "test", 4, seed=SEED),
        *suite.items("vqa", "test", 4, seed=SEED),
    ]
    earlier = (Turn("user", "What is shown?", has_image=True), Turn("assistant", "star"))
    items += [item.replace(turns=earlier, system="Be brief.") for item in items[:6]]

    async def prompt_ids(client: openai.AsyncOpenAI, item: Item) -> list[int]:
        body = request_for(item, BASE, return_token_ids=True) | {"modint": {"mode": "off"}}
        completion = await client.chat.completions.create(**arguments(body))
        return list((completion.model_extra or {})["prompt_token_ids"])

    async def every() -> list[list[int]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            return [await prompt_ids(client, item) for item in items]

    for item, served in zip(items, asyncio.run(every()), strict=True):
        encoded = encode(item, processor)
        assert served == encoded.ids[: -encoded.answer_length]


def test_the_engine_answers_what_transformers_answers(base_url: str) -> None:
    """200 test items: the same greedy answers, and probabilities within a thousandth."""
    model, processor = load_base(BASE)
    items = [
        item
        for cell in (*WATCHED, Condition("vqa", "clean", self_ask=True))
        for item in cell.items("test", 25, seed=SEED)
    ]
    assert len(items) == 200
    local = first_logits(model, processor, items).softmax(-1)

    async def every() -> list[dict[int, float]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            # One at a time: what else is in the engine's batch moves the last digits.
            return [await served(client, item) for item in items]

    async def served(client: openai.AsyncOpenAI, item: Item) -> dict[int, float]:
        body = request_for(item, BASE, logprobs=True, top_logprobs=5, return_tokens_as_token_ids=True)
        completion = await client.chat.completions.create(**arguments(body | {"modint": {"mode": "off"}}))
        logprobs = completion.choices[0].logprobs
        assert logprobs and logprobs.content
        top = logprobs.content[0].top_logprobs
        return {int(choice.token.removeprefix("token_id:")): math.exp(choice.logprob) for choice in top}

    for item, ours, theirs in zip(items, local, asyncio.run(every()), strict=True):
        assert max(theirs, key=theirs.__getitem__) == int(ours.argmax()), item.id
        assert all(abs(float(ours[token]) - share) < 1e-3 for token, share in theirs.items()), item.id
