"""Rows that say nothing of themselves: what a recipe or a command says of them holds everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import main
from modint_guard.data import read_data
from modint_guard.data.item import question_text, reply_for
from modint_guard.errors import DataError
from modint_training.data.reading import read_examples
from modint_training.recipe import ReadingConfig
from modint_training.tinyworld import suite
from modint_training.tune import training_source
from modint_training.world import data_digest
from tests.training.small import lora_recipe, save_small_base

OWN = ("letter=null", "quotas=[1, 0, 0]", "batch=4")


@pytest.fixture(scope="module")
def base(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_base(processor, tmp_path_factory.mktemp("small") / "base")


def llava(question: str, picture: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": picture, "conversations": turns}


def sharegpt(question: str, picture: str, answer: str) -> dict[str, Any]:
    return {key: value for key, value in llava(question, picture, answer).items() if key != "image"} | {
        "images": [picture]
    }


def openai(question: str, picture: str, answer: str) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    said = [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def columned(question: str, picture: str, answer: str) -> dict[str, Any]:
    return {"id": "same", "ask": f"<image>{question}", "output": answer, "images": [picture]}


def plain(folder: Path, row: Any = llava, count: int = 6) -> Path:
    """Questions about pictures as other programs write them: no `modint`, no family, no lie."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for item in suite.items("image-heavy", "train", count):
        assert item.image is not None
        item.image.save(folder / "images" / f"{item.id}.png")
        rows.append(row(question_text(item), f"{item.id}.png", reply_for(item, item.answer)))
    (folder / "mine.json").write_text(json.dumps(rows), "utf-8")
    return folder / "mine.json"


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code, words


def test_plain_rows_are_validated_trained_on_and_diagnosed_by_the_same_options(
    base: Path, tmp_path: Path
) -> None:
    mine, runs = plain(tmp_path / "mine"), tmp_path / "runs"
    pictures = mine.parent / "images"
    how = ("--family", "image-heavy", "--image-root", str(pictures))
    run("data", "validate", str(mine), *how)
    own = (
        f"data={mine}",
        f"validation={mine}",
        "reading.family=image-heavy",
        f"reading.image_root={pictures}",
    )
    short = ("rank=2", "warmup_steps=1", "steps=2", "evaluate_steps=2", "evaluate_items=4")
    run("train", "robust-lora", "name=mine", f"base={base}", *own, *OWN, *short, "--runs", str(runs))
    export = runs / "mine" / "export"
    record = json.loads((export / "run.json").read_text("utf-8"))
    assert "image-heavy/unrelated_facts" in record["validation"][-1]  # they have twins
    assert record["baseline"]["by_perturbation"].keys() >= {"unrelated_facts", "ocr_noise"}
    assert (
        record["data_sha256"] == record["validation_sha256"] == read_data(mine, image_root=pictures).digest()
    )
    run(
        *("diagnose", str(mine), "--local", "--model", str(base), "--adapter", str(export), *how),
        *("--limit", "2", "--perturbation", "unrelated_facts", "--output", str(tmp_path / "report")),
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    assert "unrelated_facts" in {row["perturbation"] for row in report["rows"]}
    assert report["command"].startswith(f"modint-guard diagnose mine.json --model {base} --adapter {export}")
    assert "--image-root images --family image-heavy" in report["command"]


@pytest.mark.parametrize("row", [llava, sharegpt, openai])
def test_plain_rows_of_every_chat_format_are_drawn_from_once_their_family_is_named(
    base: Path, processor: Any, tmp_path: Path, row: Any
) -> None:
    mine = plain(tmp_path / "mine", row)
    own = (f"data={mine}", f"reading.image_root={mine.parent / 'images'}", *OWN)
    said = (
        "holds no image-heavy examples to train on, .*; set that quota to 0 or add some, or name that of "
        r"the 6 rows which do not say theirs \(reading\.family=…\)"
    )
    with pytest.raises(DataError, match=said):
        training_source(lora_recipe(base, *own), None, processor)
    named = lora_recipe(base, *own, "reading.family=image-heavy", "steps=null", "epochs=2")
    assert training_source(named, None, processor)[1] == 3


def test_all_that_data_validate_can_be_told_can_stand_in_a_recipe(base: Path, tmp_path: Path) -> None:
    mine = plain(tmp_path / "mine", columned)
    mine.rename(mine.parent / "train.json")
    plain(tmp_path / "other", columned, count=2).rename(mine.parent / "test.json")
    how = ReadingConfig(
        format="llama-factory",
        family="image-heavy",
        split="train",
        image_root=str(mine.parent / "images"),
        columns={"prompt": "ask"},
        number_rows=True,
    )
    found = read_examples(mine.parent, how)
    assert [item.id for item in found] == [f"train-{number}" for number in range(6)]
    assert {item.family for item in found} == {"image-heavy"}
    assert data_digest(str(mine.parent), how) == found.digest()
    # What is wrong without one of them says how a recipe names it.
    for key, said in {
        "split": "holds the splits test, train: say which with --split, or reading.split of a recipe",
        "image_root": r"name its folder \(--image-root, reading.image_root of a recipe\)",
        "number_rows": r"\(--number-rows, reading.number_rows of a recipe\)",
    }.items():
        without = how.model_copy(update={key: ReadingConfig.model_fields[key].default})
        with pytest.raises(DataError, match=said):
            read_examples(mine.parent, without)
