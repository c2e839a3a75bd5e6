"""Longer answers on the real engine, the base served alone: scored as a whole by it, and reranked by that."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import EngineError
from modint_guard.evaluation.runner import request_for
from modint_guard.models import BASE
from modint_guard.types import JSON
from modint_training.tinyworld import suite

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]

COUNT = 12
SEED = 11
PATIENT = "[[policy]]\naction = 'rerank'\ndeadline_s = 120.0\n"


@pytest.fixture(scope="module")
def alone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """No adapter beside the base: only then does the engine score answers."""
    folder = Path(tmp_path_factory.mktemp("alone"))
    (folder / "policies.toml").write_text(PATIENT, "utf-8")
    environment, log = pytest.MonkeyPatch(), folder / "serve.log"
    environment.setenv("MODINT_POLICIES_FILE", str(folder / "policies.toml"))
    try:
        with log.open("wb") as output, serving([], output=output) as running:
            yield f"{running.url}/v1"
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")
    finally:
        environment.undo()


def answers(url: str, tokens: int, **fields: Any) -> list[JSON]:
    """Completions of so many tokens about pictures whose captions lie, each as the gateway mended it."""
    items = suite.items("image-heavy", "test", COUNT, seed=SEED)
    lied = [suite.perturbed(item, "misleading_description") for item in items]
    fields |= {"min_tokens": tokens, "max_tokens": tokens}
    modint = {"relevant": "image", "deadline_s": 60}

    async def every() -> list[JSON]:
        async with Endpoint(url, timeout_s=300) as endpoint:
            bodies = [request_for(item, BASE, **fields, modint=modint) for item in lied]
            return list(await asyncio.gather(*(endpoint.complete(body) for body in bodies)))

    return asyncio.run(every())


def text(completion: JSON) -> str:
    return str(completion["choices"][0]["message"]["content"])


def test_flagged_answers_of_many_words_are_reranked(alone_url: str) -> None:
    """A penalty for repeating makes the base, trained on single words, go on to others."""
    done = Counter[str]()
    for completion in answers(alone_url, 20, frequency_penalty=2.0):
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


def test_answers_that_end_in_empty_lines_are_scored_as_a_whole(alone_url: str) -> None:
    found = answers(alone_url, 12)
    lines = [each for each in found if text(each).endswith("\n") and len(text(each).split()) > 1]
    assert sum(each["modint"]["method"] == "teacher_forced" for each in lines) >= 2
