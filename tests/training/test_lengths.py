"""An example that is too long, or that a model cannot read, is refused before the first step, with its place;
no picture is decoded."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modint_guard.data import read_data, write_items, write_llava
from modint_guard.data.item import Turn
from modint_guard.data.perturb import clean_view
from modint_guard.errors import DataError
from modint_training.data.batches import data_source, pools_of, twin_batches
from modint_training.data.collate import collate, encode
from modint_training.data.lengths import check_lengths, check_validation
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld import suite
from modint_training.tune import tune
from tests.training.small import lora_recipe, save_small_base
from tests.training.small_families import small_family

STEPS = 4  # every example once


@pytest.fixture(scope="module")
def base(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_base(processor, tmp_path_factory.mktemp("small") / "base")


def rows(folder: Path, *, long: int | None = None, picture: int = 0) -> Path:
    """Eight rows of two families; the question of number `long` is of a hundred words, and with `picture` its
    picture as wide and high."""
    items = [*suite.items("image-heavy", "train", 4), *suite.items("text-heavy", "train", 4)]
    if long is not None:
        item = items[long]
        items[long] = item.replace(question=f"{'the ' * 100}{item.question}")
        if picture:
            assert item.image is not None
            items[long] = item.replace(image=item.image.resize((picture, picture)))
    return write_llava(items, folder)


def recipe_of(data: Path, *overrides: str) -> TuneRecipe:
    own = (f"data={data}", "letter=null", "quotas=[1, 1, 0]", "batch=2", f"steps={STEPS}")
    return lora_recipe("tinyworld-base", *own, *overrides)


def check(data: Path, processor: Any, *overrides: str, config: Any = None) -> None:
    recipe, found = recipe_of(data, *overrides), read_data(data)
    check_lengths(recipe, config, processor, found, pools_of(recipe, found), STEPS)


def longest(data: Path, processor: Any) -> int:
    """Of all the rows that the run will learn from, made as it makes them."""
    recipe, found = recipe_of(data), read_data(data)
    made = twin_batches(recipe, processor, data_source(recipe, found, pools_of(recipe, found)))
    return max(
        int(part.inputs["attention_mask"].sum(-1).max()) for step in range(STEPS) for part in made(step)
    )


def test_a_run_with_an_example_too_long_ends_before_its_first_step_with_file_and_line(
    base: Path, tmp_path: Path
) -> None:
    data = rows(tmp_path / "data", long=2)
    written = data.read_text("utf-8")
    sample = json.loads(written)[2]["id"]
    line = next(number for number, text in enumerate(written.split("\n"), 1) if sample in text)
    with pytest.raises(DataError) as refused:
        tune(recipe_of(data, f"base={base}", "steps=1", "max_length=120"), tmp_path / "run")
    # One step of two examples would not have come to it.
    assert (refused.value.file, refused.value.sample) == (str(data), sample)
    assert refused.value.line is not None and abs(refused.value.line - line) <= 1
    said = refused.value.problem
    assert said.startswith("it takes 1") and "tokens, more than max_length: 120; nothing is truncated" in said
    assert not (tmp_path / "run").exists()


def test_a_validation_example_too_long_ends_the_run_before_its_first_step_too(
    base: Path, tmp_path: Path
) -> None:
    data, seen = rows(tmp_path / "data"), rows(tmp_path / "seen", long=2)
    with pytest.raises(DataError, match="tokens, more than max_length: 120") as refused:
        tune(recipe_of(data, f"base={base}", f"validation={seen}", "max_length=120"), tmp_path / "run")
    assert (refused.value.file, refused.value.line is None) == (str(seen), False)
    assert not (tmp_path / "run").exists()


def test_a_text_heavy_validation_example_with_a_picture_is_checked_under_every_perturbation(
    processor: Any, tmp_path: Path
) -> None:
    pictured = [item.replace(image=item.agreeing) for item in suite.items("text-heavy", "validation", 2)]
    data = write_llava(pictured, tmp_path / "data")
    recipe = recipe_of(data)
    check_validation(recipe, None, processor, read_data(data), 2)
    short = recipe.model_copy(
        update={"max_length": 30}
    )  # the texts alone are shorter; a picture takes 26 tokens
    with pytest.raises(DataError, match=r": its twin, \w+, takes \d\d tokens, more than max_length: 30"):
        check_validation(short, None, processor, read_data(data), 2)


def test_a_validation_example_that_is_measured_for_the_card_alone_is_held_to_it_too(
    base: Path, tmp_path: Path
) -> None:
    data, seen = rows(tmp_path / "data"), rows(tmp_path / "seen", long=2)
    own = (f"base={base}", f"validation={seen}", "evaluate_items=1")
    with pytest.raises(DataError, match="more than max_length: 120"):
        tune(recipe_of(data, *own, "max_length=120"), tmp_path / "run")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_rows_that_are_checked_are_as_long_as_those_that_are_learnt_from(
    processor: Any, tmp_path: Path, name: str
) -> None:
    data, own = rows(tmp_path / "data", long=1, picture=120), small_family(name, processor)[1]
    most = longest(data, own)
    check(data, own, f"max_length={most}")
    with pytest.raises(DataError, match=f"takes {most} tokens, more than max_length: {most - 1}"):
        check(data, own, f"max_length={most - 1}")


def test_a_twin_that_is_too_long_is_refused_by_its_name(processor: Any, tmp_path: Path) -> None:
    data = rows(tmp_path / "data")
    clean = max(len(encode(clean_view(item), processor).ids) for item in read_data(data))
    alone = ("perturbations=[unrelated_facts, noise]", "controls=[]")
    with pytest.raises(DataError, match=r"sample '.*': its twin, (unrelated_facts|noise), takes"):
        check(data, processor, *alone, f"max_length={clean}")


def test_no_picture_is_opened_where_all_take_the_same_and_none_decoded_where_sizes_count(
    processor: Any, tmp_path: Path
) -> None:
    data = rows(tmp_path / "data")
    qwen = small_family("qwen2_5_vl", processor)[1]
    for picture in data.parent.rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])  # signature and header, and hardly a pixel
    check(data, qwen)
    for picture in data.parent.rglob("*.png"):
        picture.write_bytes(b"no picture")
    check(data, processor)
    with pytest.raises(DataError, match=r"the picture .* cannot be used: The data is not a PNG"):
        check(data, qwen)


def test_a_text_that_holds_the_pictures_placeholder_is_refused_with_its_place(
    processor: Any, tmp_path: Path
) -> None:
    item = suite.items("text-heavy", "train", 1)[0]
    write_items([item, item.replace(id="x", question="What is an <image> token?")], tmp_path)
    said = r"items\.jsonl:2: sample 'x': its text holds the picture's placeholder"
    with pytest.raises(DataError, match=said):
        check(tmp_path, processor, "quotas=[0, 1, 0]")


@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"turns": (Turn("user", "Look."),) * 2}])
def test_a_chat_for_a_model_without_a_template_is_refused_with_its_place(
    processor: Any, tmp_path: Path, more: Any
) -> None:
    item = suite.items("text-heavy", "train", 1)[0]
    write_items([item, item.replace(id="x", **more)], tmp_path)
    model, own = small_family("instructblip", processor)
    said = r"items\.jsonl:2: sample 'x': a model without a chat template reads a single question: leave"
    with pytest.raises(DataError, match=said):
        check(tmp_path, own, "quotas=[0, 1, 0]", config=model.config)


def test_a_text_that_the_template_changes_is_refused_with_its_place(processor: Any, tmp_path: Path) -> None:
    item = suite.items("text-heavy", "train", 1)[0]
    write_items([item, item.replace(id="x", question="What?  ", context=None)], tmp_path)
    trimming = copy.deepcopy(processor)
    trimming.chat_template = "{% for part in messages[-1].content %}{{ part.text | trim }}{% endfor %}."
    said = r"items\.jsonl:2: sample 'x': the chat template changes the user's text 'What\?  ', so that its"
    with pytest.raises(DataError, match=said):
        check(tmp_path, trimming, "quotas=[0, 1, 0]")


def test_a_text_beside_a_picture_is_no_longer_than_the_model_reads_there(
    processor: Any, tmp_path: Path
) -> None:
    model, own = small_family("instructblip", processor)
    data = rows(tmp_path / "data", long=1)
    item = read_data(data)[1]
    row = encode(clean_view(item), own)
    most = len(own.qformer_tokenizer(row.text).input_ids)

    def read(positions: int) -> None:
        model.config.qformer_config.max_position_embeddings = positions
        check(data, own, "perturbations=[noise]", "controls=[]", config=model.config)

    read(most)
    with torch.no_grad():
        type(model)(model.config)(**collate([row], own).inputs)
    said = (
        rf"sample '{item.id}': it takes {most} tokens in the Q-Former, which has {most - 1} positions for a "
        "text beside a picture; nothing is truncated: shorten its text$"
    )
    with pytest.raises(DataError, match=said):
        read(most - 1)
    with torch.no_grad(), pytest.raises(RuntimeError):
        type(model)(model.config)(**collate([row], own).inputs)


def test_a_text_is_read_beside_a_picture_where_its_row_has_one(processor: Any, tmp_path: Path) -> None:
    model, own = small_family("instructblip", processor)
    data = rows(tmp_path / "data", long=5)
    model.config.qformer_config.max_position_embeddings = 60
    alone = ("quotas=[0, 1, 0]", "controls=[]")
    check(data, own, *alone, "perturbations=[unrelated_facts]", config=model.config)
    with torch.no_grad():
        type(model)(model.config)(**collate([encode(clean_view(read_data(data)[5]), own)], own).inputs)
    with pytest.raises(DataError, match=r": its twin, noise, takes \d+ tokens in the Q-Former, which has 60"):
        check(data, own, *alone, "perturbations=[noise]", config=model.config)


def test_text_heavy_validation_examples_that_bring_pictures_are_checked(
    processor: Any, tmp_path: Path
) -> None:
    data = write_llava(suite.items("text-heavy", "validation", 2), tmp_path / "seen")
    found = read_data(data)
    check_validation(recipe_of(data), None, processor, found, 2)
