"""Longer answers on the real engine, beside an adapter: scored as a whole by it, and reranked by that."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from peft import PeftModel

from modint_guard import Guard, GuardConfig
from modint_guard.endpoint import Endpoint
from modint_guard.evaluation.runner import request_for
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.probing.teacher_forcing import forced_body
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR
from modint_training.data.collate import collate, encode
from modint_training.models.loading import load_base
from modint_training.tinyworld import suite

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]

COUNT = 12
SEED = 11


def answers(url: str, tokens: int, **fields: Any) -> list[JSON]:
    """Completions of so many tokens about pictures whose captions lie, each as the gateway mended it."""
    items = suite.items("image-heavy", "test", COUNT, seed=SEED)
    lied = [suite.perturbed(item, "misleading_description") for item in items]
    fields |= {"min_tokens": tokens, "max_tokens": tokens}
    modint = {"relevant": "image", "deadline_s": 60, "action": "rerank"}

    async def every() -> list[JSON]:
        async with Endpoint(url, timeout_s=300) as endpoint:
            bodies = [request_for(item, BASE, **fields, modint=modint) for item in lied]
            return list(await asyncio.gather(*(endpoint.complete(body) for body in bodies)))

    return asyncio.run(every())


def test_answers_scored_alone_and_from_the_cache_have_the_values_of_whole_prompts(base_url: str) -> None:
    """The library's guard sees what a client sees, so its views are computed whole. The gateway's are asked
    for the answer's rows; the second time, what lies before these is in vLLM's cache. Base and adapter, whole
    and not, meet in the engine's batches.
    """
    items = suite.items("image-heavy", "test", 4, seed=SEED)
    told = [suite.perturbed(item, "misleading_description") for item in items]
    modint = {"relevant": "image", "deadline_s": 60, "probes": [NO_CONTEXT, NEUTRAL_IMAGE, PRIOR]}
    fields = {"min_tokens": 40, "max_tokens": 40, "frequency_penalty": 2.0}
    pairs = itertools.product((BASE, ADAPTER), told)
    bodies = [{**request_for(item, name, modint=modint), **fields} for name, item in pairs]
    guard = Guard(GuardConfig(teacher_forcing=True))

    async def every() -> list[tuple[list[JSON], JSON]]:
        async with Endpoint(base_url, timeout_s=300) as endpoint:

            async def plain(body: JSON) -> JSON:
                return await endpoint.complete({**body, "modint": {"mode": "off"}})

            async def both(body: JSON) -> tuple[list[JSON], JSON]:
                whole = asyncio.create_task(guard.inspect(body, plain))
                ours = [await endpoint.complete(body) for _ in range(2)]
                return ours, (await whole).completion

            return list(await asyncio.gather(*map(both, bodies)))

    compared, cached = 0, 0
    for ours, whole in asyncio.run(every()):
        for each in ours:
            report, expected = each["modint"], whole["modint"]
            if "teacher_forced" not in (report["method"], expected["method"]) or text(each) != text(whole):
                continue
            assert [span["text"] for span in report["spans"]] == [span["text"] for span in expected["spans"]]
            for one, other in zip(report["spans"], expected["spans"], strict=True):
                assert one["influence"] == pytest.approx(other["influence"], abs=1e-3)
            compared += 1
            cached += sum(probe["cached_tokens"] for probe in report["probes"])
    assert compared >= len(bodies) and cached >= 32 * len(bodies)


def text(completion: JSON) -> str:
    return str(completion["choices"][0]["message"]["content"])


def test_flagged_answers_of_many_words_are_reranked(base_url: str) -> None:
    """A penalty for repeating makes the base, trained on single words, go on to others."""
    done = Counter[str]()
    for completion in answers(base_url, 20, frequency_penalty=2.0):
        report = completion["modint"]
        if (told := report["mitigation"]) is None:
            continue
        (rung,) = told["rungs"]
        done[rung["outcome"]] += 1
        assert text(completion) == (told["answer"] or told["original"])
        if rung["outcome"] in ("mended", "unchanged"):
            assert (report["method"], rung["tokens"] > 100) == ("teacher_forced", True)
        assert (told["answer"] is not None) == (rung["outcome"] == "mended")
    assert done["mended"] + done["unchanged"] >= 2, done
    # unfit: of too few words, or cut into other tokens when it was given to the engine
    assert set(done) <= {"mended", "unchanged", "unfit"}


def test_answers_that_end_in_empty_lines_are_scored_as_a_whole(base_url: str) -> None:
    found = answers(base_url, 12)
    lines = [each for each in found if text(each).endswith("\n") and len(text(each).split()) > 1]
    assert sum(each["modint"]["method"] == "teacher_forced" for each in lines) >= 2


def test_a_given_answer_has_the_probabilities_of_transformers_beside_adapters(base_url: str) -> None:
    """All at once, so that base and adapter meet in the engine's batches."""
    net, processor = load_base(BASE)
    models = {BASE: net, ADAPTER: PeftModel.from_pretrained(load_base(BASE)[0], bundled(ADAPTER))}
    told = [suite.perturbed(item, "misleading_description") for item in suite.items("image-heavy", "test", 4)]
    items = [*told, *suite.items("text-heavy", "test", 4)]
    free = {"form": "free", "choices": (), "wrong": "", "replies": ()}
    given = [item.replace(**free, answer=f"{item.answer} {item.wrong} {item.answer}") for item in items]
    pairs = list(itertools.product(models, given))

    async def every() -> list[JSON]:
        async with Endpoint(base_url, timeout_s=300) as endpoint:
            bodies = [
                forced_body(request_for(item, name) | {"modint": {"mode": "off"}}, item.answer, 1)
                for name, item in pairs
            ]
            return list(await asyncio.gather(*(endpoint.complete(body) for body in bodies)))

    moved = 0
    for (name, item), completion in zip(pairs, asyncio.run(every()), strict=True):
        row = encode(item, processor)
        count = row.answer_length - 1  # without the token that ends the answer
        ids = row.ids[-row.answer_length : -1]
        assert completion["prompt_token_ids"][-count:] == ids
        scored = [
            entry[str(token)]["logprob"]
            for entry, token in zip(completion["prompt_logprobs"][-count:], ids, strict=True)
        ]
        with torch.no_grad():
            ours = {
                model: net.eval()(**collate([row], processor).inputs, use_cache=False)
                .logits[0, -row.answer_length - 1 : -2]
                .log_softmax(-1)[range(count), ids]
                for model, net in models.items()
            }
        assert torch.tensor(scored).exp().tolist() == pytest.approx(ours[name].exp().tolist(), abs=1e-3)
        moved += bool((ours[BASE].exp() - ours[ADAPTER].exp()).abs().max() > 0.01)
    assert moved >= len(pairs) / 2  # else the base's values for the adapter would pass
