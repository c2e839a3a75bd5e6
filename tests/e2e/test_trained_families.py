"""Adapters of tiny checkpoints, trained here and served by the real vLLM, answer as transformers does."""

import json
import math
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlavaProcessor

from modint_guard.data.item import Item
from modint_guard.data.perturb import perturb
from modint_guard.demo.launch import RunningGateway, serving
from modint_guard.evaluation.runner import request_for
from modint_guard.models import BASE, bundled
from modint_training.data.collate import Encoded, collate, encode
from modint_training.method.labels import IGNORED
from modint_training.models.export import export_adapter, rename_vision_keys
from modint_training.models.loading import load_base
from modint_training.run_record import run_record
from modint_training.tinyworld import suite
from modint_training.tune import tune
from tests.training.small import lora_recipe
from tests.training.small_families import small_family

pytestmark = [pytest.mark.e2e, pytest.mark.trains, pytest.mark.needs("libnuma1")]

# Families, and how much larger their heads are made: else every token is about as likely as any other.
PEAKED = {"llava": 3.0, "qwen2_5_vl": 12.0}
SAID = 3  # tokens of an answer that are compared
TOP = 20
TUNED = "tuned"
FLAT = 1e-3  # as close as probabilities must be, and as far from the base's


@dataclass(frozen=True)
class Trained:
    """A base and its adapter, each as a folder that the engine loads."""

    base: Path
    adapter: Path


def trained(name: str, home: Path) -> Trained:
    """A few steps on every part of a tiny checkpoint: language model, connector and vision tower."""
    model, processor = small_family(name, LlavaProcessor.from_pretrained(bundled(BASE)))
    with torch.no_grad():
        model.lm_head.weight.mul_(PEAKED[name])
    model.save_pretrained(home / "base")
    processor.save_pretrained(home / "base")
    if name == "llava":
        rename_vision_keys(home / "base" / "model.safetensors")
    recipe = lora_recipe(
        home / "base",
        "scope=[language, connector, vision]",
        *("lr=0.02", "steps=6", "quotas=[1, 1, 2]", "evaluate_items=1", "precision=fp32"),
    )
    tuned = tune(recipe, home / "run")
    parameters = tuned.model.named_parameters()
    assert all(tensor.abs().sum() > 0 for key, tensor in parameters if "lora_B" in key)
    export_adapter(tuned.model, home / TUNED, run_record(recipe, tuned.history, [], 1.0))
    return Trained(home / "base", home / TUNED)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {name: trained(name, tmp_path_factory.mktemp(name)) for name in PEAKED}


@pytest.fixture(scope="module")
def engines(
    made: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RunningGateway]]:
    """An engine each, started beside each other: most of a start is spent on importing."""
    logs = tmp_path_factory.mktemp("engines")
    with ExitStack() as stack:
        running = {
            name: serving(
                ["--model", str(one.base), "--adapter", f"{TUNED}={one.adapter}"],
                output=stack.enter_context((logs / f"{name}.log").open("wb")),
            )
            for name, one in made.items()
        }
        with ThreadPoolExecutor(len(running)) as pool:
            ready = pool.map(lambda engine: stack.enter_context(engine), running.values())
            yield dict(zip(running, ready, strict=True))


def items() -> list[Item]:
    """Pictures with a lying caption, texts with and without a picture, and what needs both."""
    told, read = (suite.items(family, "test", 4) for family in ("image-heavy", "text-heavy"))
    return [
        *(perturb(item, "misleading_description") for item in told),
        *(perturb(item, "contradicting_image") for item in read[:2]),
        *(item.replace(image=None) for item in read[2:]),
        *suite.items("vqa", "test", 4),
    ]


@dataclass(frozen=True)
class Answer:
    """What the engine read, what it said, and the likeliest tokens at each position of that."""

    prompt: list[int]
    said: list[int]
    top: list[dict[int, float]]


def ask(url: str, model: str, item: Item) -> Answer:
    wanted = {"logprobs": True, "top_logprobs": TOP, "max_tokens": SAID, "ignore_eos": True}
    named = {"return_token_ids": True, "return_tokens_as_token_ids": True, "modint": {"mode": "off"}}
    body = json.dumps(request_for(item, model) | wanted | named).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer = json.load(reply)
    content = answer["choices"][0]["logprobs"]["content"]
    return Answer(
        answer["prompt_token_ids"],
        [number(entry["token"]) for entry in content],
        [
            {number(top["token"]): math.exp(top["logprob"]) for top in entry["top_logprobs"]}
            for entry in content
        ],
    )


def number(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def probabilities(model: Any, processor: Any, item: Item, said: list[int]) -> Tensor:
    """Of every token at each position of what was said  # (positions, V)."""
    row = encode(item, processor)
    prompt = row.ids[: -row.answer_length]
    ids = [*prompt, *said[:-1]]
    inputs = collate([Encoded(ids, [IGNORED] * len(ids), row.image, text=row.text)], processor).inputs
    with torch.no_grad():
        logits: Tensor = model.eval()(**inputs, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float().softmax(-1)


def furthest(theirs: dict[int, float], ours: Tensor) -> float:
    return max(abs(float(ours[token]) - share) for token, share in theirs.items())


def far(theirs: Sequence[dict[int, float]], ours: Tensor) -> list[bool]:
    return [furthest(*pair) > FLAT for pair in zip(theirs, ours, strict=True)]


def with_adapter(folders: Trained, *, without: str | None = None) -> Any:
    """The tuned model; `without` names modules whose adapters are left out."""
    model = PeftModel.from_pretrained(load_base(str(folders.base))[0], folders.adapter)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if without and without in key and "lora_B" in key:
                tensor.zero_()
    return model


@pytest.mark.parametrize("name", PEAKED)
def test_vllm_answers_with_a_trained_adapter_as_transformers_does(
    name: str, made: dict[str, Trained], engines: dict[str, RunningGateway]
) -> None:
    base, processor = load_base(str(made[name].base))
    tuned, blind = with_adapter(made[name]), with_adapter(made[name], without=".vis")
    moved: list[bool] = []
    seen: list[bool] = []
    for item in items():
        row = encode(item, processor)
        for model, served in ((tuned, TUNED), (base, "base")):
            answer = ask(engines[name].url, served, item)
            assert answer.prompt == row.ids[: -row.answer_length]
            assert far(answer.top, probabilities(model, processor, item, answer.said)) == [False] * SAID
            if model is tuned:
                moved += far(answer.top, probabilities(base, processor, item, answer.said))
                seen += (
                    far(answer.top, probabilities(blind, processor, item, answer.said)) if item.image else []
                )
    assert sum(moved) >= len(moved) / 2  # else a base served in silence would pass
    assert sum(seen) >= len(seen) / 2  # and an adapter whose part on the tower and connector is left out
