"""A local model as the runner sees it, and as `modint-guard diagnose --local` asks it."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from torch import nn

from modint_guard.cli import main
from modint_guard.data.item import Turn, prompt
from modint_guard.data.options import ReadingOptions
from modint_guard.errors import RequestError
from modint_guard.evaluation.diagnose import ask_all
from modint_guard.evaluation.extensions import LOCAL, WORLDS, load
from modint_guard.evaluation.items import items_of
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.runner import request_for, run
from modint_guard.evaluation.targets import Target, local_reach
from modint_guard.evaluation.variants import variants_of
from modint_guard.models import ADAPTER, BASE
from modint_guard.types import Complete
from modint_training.loop.predict import first_logits
from modint_training.models.loading import local_model
from modint_training.models.local import complete_of, completion, item_of
from modint_training.tinyworld import suite
from tests.training.small import save_small_base, small_model
from tests.training.test_predict import one_word_model

ITEMS = [
    suite.items("image-heavy", "test", 1)[0].replace(context="Caption: the digit 3."),
    suite.items("vqa", "test", 1)[0],
    suite.items("text-heavy", "test", 1)[0],
]


async def test_a_local_model_says_through_the_runner_what_it_says_in_batches(processor: Any) -> None:
    model = small_model(processor)
    rows = await run(
        ITEMS, complete_of(model, processor), "m", max_tokens=1, logprobs=True, top_logprobs=5000
    )
    expected = first_logits(model, processor, ITEMS).log_softmax(-1)
    for row, logprobs in zip(rows, expected, strict=True):
        assert row.top is not None
        said = processor.tokenizer.decode([int(logprobs.argmax())])  # other tokens may share a text
        assert row.top[said] == pytest.approx(float(logprobs.max()), abs=1e-4)


def test_an_answer_ends_with_the_end_token_or_at_its_limit(processor: Any) -> None:
    body = request_for(ITEMS[0], "m")
    endless = completion(one_word_model(processor, "B"), processor, {**body, "max_tokens": 3})
    assert endless["choices"][0]["finish_reason"] == "length"
    assert (endless["choices"][0]["message"]["content"], endless["choices"][0]["logprobs"]) == ("BBB", None)
    assert endless["usage"]["completion_tokens"] == 3
    silent = completion(one_word_model(processor, processor.tokenizer.eos_token), processor, body)
    assert silent["choices"][0]["finish_reason"] == "stop"
    assert silent["choices"][0]["message"]["content"] == ""


def declared(group: str) -> list[EntryPoint]:
    """The entry points that `pyproject.toml` declares in this group."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    return [EntryPoint(name, value, group) for name, value in project["entry-points"][group].items()]


async def test_a_local_model_is_diagnosed_as_an_endpoint_is(tmp_path: Path) -> None:
    variants = variants_of(suite.items("image-heavy", "test", 2), ["misleading_description"], [5], 0)
    reach = local_reach(load(declared(LOCAL), "--local"), 1.0)
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        (answers,) = await ask_all([Target(BASE, ADAPTER)], variants, journal, reach=reach)
    assert len(answers) == 4 and {answer.method for answer in answers} == {"first_token"}
    assert all(answer.cells.keys() == {"no_context", "neutral_image", "prior"} for answer in answers[1::2])
    assert all(answer.options for answer in answers)  # the whole vocabulary is listed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": []}, "chats of user and assistant in turn that end with the user"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "that end with the user"),
        ({"messages": [{"role": "user", "content": "Hi."}] * 2}, "user and assistant in turn"),
        ({"temperature": 1}, "at temperature 0"),
    ],
)
def test_what_a_local_model_is_not_asked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        item_of({**request_for(ITEMS[0], "m"), **changes})


def test_a_chat_is_read_with_its_turns_and_its_picture_where_it_stands() -> None:
    earlier = (Turn("user", "Look at this.", has_image=True), Turn("assistant", "I see it."))
    for item in (ITEMS[0].replace(turns=earlier, system="Be brief."), ITEMS[2].replace(turns=earlier[:0])):
        read = item_of(request_for(item, "m"))
        assert (read.question, read.system, read.turns) == (prompt(item), item.system, item.turns)
        assert (read.image is None) == (item.image is None)


def test_two_pictures_are_too_many() -> None:
    body = request_for(ITEMS[0], "m")
    content = body["messages"][0]["content"]
    body["messages"][0]["content"] = [content[0], *content]
    with pytest.raises(RequestError, match="takes one picture, not 2"):
        item_of(body)


@pytest.mark.parametrize("world", [point.name for point in declared(WORLDS)])
def test_every_bundled_world_gives_each_family_in_both_wordings(world: str) -> None:
    items = items_of(world, ReadingOptions(), limit=2, seed=5, split="test", worlds=declared(WORLDS))
    assert [(item.family, item.held_out_wording) for item in items[::2]] == [
        (family, held_out) for family in ("image-heavy", "text-heavy", "vqa") for held_out in (False, True)
    ]
    assert variants_of(items, [], [5], 0)


def test_the_items_of_a_world_are_those_of_its_test_split_and_of_the_seed() -> None:
    items = items_of("tinyworld", ReadingOptions(), limit=2, seed=5, split="test", worlds=declared(WORLDS))
    assert [item.id for item in items[::2]] == [
        f"test-5-{wording}-{family}-0"
        for family in ("image-heavy", "text-heavy", "vqa")
        for wording in ("trained", "held-out")
    ]


def diagnose(output: Path, *options: str) -> dict[str, Any]:
    """The report on one TinyWorld item of each family and wording."""
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "tinyworld", "--local", "--limit", "1", "--output", str(output), *options])
    assert not stop.value.code
    report: dict[str, Any] = json.loads((output / "report.json").read_text("utf-8"))
    return report


def test_two_local_models_are_compared_on_the_bundled_world(processor: Any, tmp_path: Path) -> None:
    small = str(save_small_base(processor, tmp_path / "small"))
    options = ("--model", BASE, "--against", small, "--perturbation", "misleading_description")
    report = diagnose(tmp_path / "out", *options)
    assert report["command"].startswith(
        f"modint-guard diagnose tinyworld --model {BASE} --against {small} --local --perturbation"
    )
    # Three families clean and one under the lie, each in trained and in held-out wordings.
    assert [row["model"] for row in report["rows"]] == [BASE] * 8 + [small] * 8
    assert {row["held_out"] for row in report["rows"]} == {"no", "wording"}
    lost = [row["difference"] for row in report["comparison"]]
    accuracies = [row["accuracy"] for row in report["rows"]]
    assert lost == [after - before for before, after in zip(accuracies[:8], accuracies[8:], strict=True)]
    assert sum(lost) < 0


async def test_one_local_model_is_in_memory_at_a_time(processor: Any, tmp_path: Path) -> None:
    nets: list[ref[nn.Module]] = []

    @contextmanager
    def watched(model: str, adapter: str | None, *, image_attention: float) -> Iterator[Complete]:
        assert not any(net() for net in nets)
        with local_model(model, adapter, image_attention=image_attention) as complete:
            nets.extend(ref(held) for held in closure(complete) if isinstance(held, nn.Module))
            yield complete

    small = str(save_small_base(processor, tmp_path / "small"))
    variants = variants_of(suite.items("image-heavy", "test", 1), ["neutral_text"], [5], 0)
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        await ask_all([Target(BASE), Target(small)], variants, journal, reach=local_reach(watched, 1.0))
    assert len(nets) == 2


def closure(function: Any) -> list[Any]:
    """What a function holds on to."""
    return [cell.cell_contents for cell in function.__closure__]


def test_the_attention_to_pictures_may_be_scaled_and_the_report_says_so(
    processor: Any, tmp_path: Path
) -> None:
    base = str(save_small_base(processor, tmp_path / "base"))

    def moved(gain: str) -> tuple[str, list[Any]]:
        lie = ("--perturbation", "contradicting_image")
        report = diagnose(tmp_path / gain, "--model", base, *lie, "--image-attention", gain)
        return report["command"], [row["js"] for row in report["rows"] if row["js"]]

    (plain, first), (scaled, second) = moved("1"), moved("5")
    assert "--image-attention" not in plain and "--local --image-attention 5" in scaled
    assert first and first != second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--model", "nowhere"),
            "no base model 'nowhere': neither a model folder nor a bundled model; train it first",
        ),
        (
            ("--model", BASE, "--adapter", "nobody"),
            "no adapter 'nobody': neither a PEFT folder nor a bundled adapter; train it first",
        ),
    ],
)
def test_a_local_model_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "tinyworld", "--local", "--limit", "1", "--output", str(tmp_path), *options])
    assert (stop.value.code, capsys.readouterr().err.splitlines()[-1]) == (2, said)
