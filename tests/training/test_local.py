"""A local model as the runner sees it, and the files that an evaluation writes."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from modint_guard.cli import main
from modint_guard.data.item import Turn, prompt
from modint_guard.errors import ConfigError, RequestError
from modint_guard.evaluation.diagnose import LOCAL, answers, local_reach, variants
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.runner import request_for, run
from modint_guard.models import ADAPTER, BASE
from modint_training.evaluation import Wanted, evaluate_to, items_of
from modint_training.loop.predict import first_logits
from modint_training.models.loading import loaded
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


async def test_a_local_model_is_diagnosed_as_an_endpoint_is(tmp_path: Path) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    ((name, value),) = declared["project"]["entry-points"][LOCAL].items()
    asked = variants(suite.items("image-heavy", "test", 2), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "answers.jsonl", {}) as journal:
        async with local_reach([EntryPoint(name, value, LOCAL)])(f"{BASE}+{ADAPTER}", "") as complete:
            found = await answers("m", complete, asked, journal)
    assert len(found) == 4 and {each.method for each in found} == {"first_token"}
    assert all(each.cells.keys() == {"no_context", "neutral_image", "prior"} for each in found[1::2])


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


def test_an_evaluation_compares_two_models_and_holds_one_at_a_time(processor: Any, tmp_path: Path) -> None:
    made: list[ref[Any]] = []

    def watched(model: str, adapter: str | None) -> tuple[Any, Any]:
        assert not any(each() for each in made)
        net, its_processor = loaded(model, adapter)
        made.append(ref(net))
        return net, its_processor

    small = str(save_small_base(processor, tmp_path / "small"))
    wanted = Wanted(BASE, against=small, perturbations=["misleading_description"], count=1)
    assert len(items_of(wanted)) == 6  # three families, trained and held-out wordings
    files = evaluate_to(tmp_path / "report.json", wanted, load=watched)
    record = json.loads(files[0].read_text())
    assert record["command"].startswith(f"modint-guard evaluate --model {BASE} --against {small} ")
    rows = record["rows"]
    assert [row["model"] for row in rows] == [BASE] * (6 + 2) + [small] * (6 + 2)
    gains = [ours["accuracy"] - theirs["accuracy"] for ours, theirs in zip(rows[:8], rows[8:], strict=True)]
    assert [row["gain"] for row in rows] == [*gains, *[None] * 8]
    assert sum(gains) > 0 and len(made) == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": BASE, "against": "base"}, f"--against base compares {BASE} with itself: name another"),
        ({"model": BASE, "against": BASE}, f"--against {BASE} compares {BASE} with itself"),
        ({"model": BASE, "adapter": ADAPTER, "against": ADAPTER}, f"compares {ADAPTER} with itself"),
        ({"model": "m", "against": "m", "url": "http://127.0.0.1:1"}, "--against m compares m with itself"),
        ({"model": BASE, "against": "nobody"}, "--against nobody names no second model: neither a model or"),
    ],
)
def test_a_second_model_that_is_none_or_the_first_is_refused(asked: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Wanted(**asked)  # type: ignore[arg-type]


def test_a_second_model_may_be_a_model_an_adapter_or_the_base() -> None:
    assert Wanted(BASE, ADAPTER, against="base").models == [(BASE, ADAPTER), (BASE, None)]
    assert Wanted(BASE, ADAPTER, against=BASE).models == [(BASE, ADAPTER), (BASE, None)]
    assert Wanted(BASE, against=ADAPTER).models == [(BASE, None), (BASE, ADAPTER)]
    assert Wanted("m", against="base", url="http://127.0.0.1:1").names == ["m", "base"]


def test_what_only_a_report_can_hold_needs_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--against", "base"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("need --output FILE.json\n")


def test_an_evaluation_may_scale_the_attention_to_pictures_and_says_so(
    processor: Any, tmp_path: Path
) -> None:
    base = save_small_base(processor, tmp_path / "base")

    def probability(gain: float) -> tuple[str, list[Any]]:
        wanted = Wanted(str(base), perturbations=["contradicting_image"], count=1, image_attention=gain)
        record = json.loads(evaluate_to(tmp_path / f"{gain:g}.json", wanted)[0].read_text())
        return record["command"], [row["js"] for row in record["rows"] if row["js"]]

    (plain, first), (scaled, second) = probability(1.0), probability(5.0)
    assert "--image-attention" not in plain and "--image-attention 5" in scaled
    assert first and first != second


def test_the_attention_of_a_served_model_is_not_evaluations_to_scale() -> None:
    with pytest.raises(ConfigError, match="--image-attention 2 is of a local model"):
        Wanted("m", url="http://127.0.0.1:1", image_attention=2.0)
