"""The picture-book as a world to train on and to measure: slots, watched items, whole replies, rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.picturebook import document_rows, table_row
from modint_guard.data.item import reply_for
from modint_guard.evaluation.runner import Row
from modint_training.data.batches import twin_rng
from modint_training.data.sampler import Quotas
from modint_training.data.twins import twin_kind
from modint_training.loop.predict import first_words
from modint_training.models.loading import load_base
from modint_training.picturebook.conditions import WATCHED, Condition, breakdown
from modint_training.picturebook.documents import documents
from modint_training.picturebook.replies import replies, right
from modint_training.picturebook.source import WORLD
from modint_training.recipe import TuneRecipe
from modint_training.recipe_files import load_recipe
from modint_training.tinyworld import suite as tinyworld
from tests.training.small import lora_recipe

KEYS = (
    *("model", "family", "perturbation", "held_out", "placement", "task"),
    *("n", "accuracy", "ci_low", "ci_high"),
    *("judged", "flagged_rate", "judged_right", "flagged_right", "neglect_rate"),
)


def recipe(**settings: Any) -> TuneRecipe:
    return lora_recipe(Path("base")).model_copy(update=settings)


def test_a_slot_gives_the_same_item_of_its_family_at_every_call() -> None:
    slots = Quotas((2, 1, 1), 8).slots(3)
    first, second = ([WORLD.source(recipe())(slot) for slot in slots] for _ in range(2))
    assert first == second
    assert [item.family for item in first] == [slot.family for slot in slots]
    assert all(item.id.startswith("train-") and not item.held_out_wording for item in first)


@pytest.mark.parametrize("letter", [0.0, 1.0])
def test_as_many_questions_about_pictures_are_lettered_as_the_recipe_says(letter: float) -> None:
    source = WORLD.source(recipe(letter=letter))
    slots = Quotas((1, 0, 0), 30).slots(0)
    assert {source(slot).form == "letter" for slot in slots} == {letter == 1.0}


def test_every_watched_item_is_compared_with_its_clean_self() -> None:
    watched = {each.name: each for each in WORLD.validation(11)}
    assert len(watched) == 8
    for each in watched.values():
        assert [item.id for item in each.items] == [item.id for item in watched[each.clean].items]


def test_captions_that_are_needed_are_as_many_as_lies() -> None:
    adapter = load_recipe("picturebook-lora")
    assert isinstance(adapter, TuneRecipe)
    found = Counter[str]()
    for slot in Quotas(adapter.quotas, 900).slots(0):
        item = WORLD.source(adapter)(slot)
        drawn = twin_kind(adapter, item, twin_rng(adapter, slot))
        found["lies"] += drawn is not None and drawn[0] == "misleading_description"
        found["needed"] += item.family == "vqa" and (item.task == "faded" or bool(item.truth))
        found["yes or no"] += item.family == "image-heavy" and item.task == "yes_no"
    assert 0.9 < found["needed"] / found["lies"] < 1.2
    assert 0.2 < found["yes or no"] / 300 < 0.3


def test_a_poor_picture_is_watched_under_its_true_caption() -> None:
    poor = Condition("image-heavy", "true_description", poor=True)
    assert poor in WATCHED
    sharp = Condition("image-heavy", "clean").items("test", 9)
    for item, other in zip(poor.items("test", 9), sharp, strict=True):
        assert (item.id, item.context) == (other.id, other.truth) and item.image != other.image
    (row, *_) = breakdown(poor, poor.items("test", 4), [True] * 4)
    assert row["perturbation"] == "true_description, poor picture"


def test_whole_replies_are_those_of_a_model_read_token_by_token() -> None:
    model, processor = load_base("tinyworld-base")
    items = [item for family in ("image-heavy", "text-heavy") for item in tinyworld.items(family, "test", 10)]
    assert [text.split()[0] for text in replies(model, processor, items)] == first_words(
        model, processor, items
    )
    assert sum(right(model, processor, items)) > 15


def answered(cell: Condition) -> list[Row]:
    """Rows of which all but the first three are right; of the first four, which were judged, a wrong and a
    right one are flagged as interference, and a wrong one because it neglects the picture."""
    items = cell.items("test", 8)
    texts = [reply_for(item, item.answer if index >= 3 else item.wrong) for index, item in enumerate(items)]
    said = [
        {"verdict": "flagged" if cause else "pass", "cause": cause}
        for cause in (None, "text", "neglect", "text")
    ]
    return [
        Row(item, "base", text, right=index >= 3, modint=modint)
        for index, (item, text, modint) in enumerate(zip(items, texts, [*said, *4 * [None]], strict=True))
    ]


def test_accuracy_is_of_all_answers_and_flags_of_those_that_were_judged() -> None:
    cell = Condition("image-heavy", "misleading_description")
    row = table_row("base", cell, answered(cell))
    assert tuple(row) == KEYS
    assert (row["task"], row["n"], row["accuracy"]) == ("all", 8, 0.625)
    assert (row["judged"], row["flagged_rate"], row["neglect_rate"]) == (4, 0.5, 0.25)
    assert (row["judged_right"], row["flagged_right"]) == (1, 1.0)
    assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]


def test_a_row_of_one_sub_task_is_named_after_it() -> None:
    cell = Condition("image-heavy", "misleading_description", task="open")
    row = table_row("base", cell, answered(cell))
    assert row["task"] == "open"


def test_documents_are_counted_by_flags_alone() -> None:
    items = documents("test", 24)
    found = [
        Row(item, "base", "?", right=False, modint={"verdict": "flagged", "cause": "text"}) for item in items
    ]
    rows = list(document_rows("base", found))
    assert {tuple(row) for row in rows} == {KEYS}
    assert {(row["placement"], row["accuracy"]) for row in rows} == {("document", None)}
    assert Counter(row["judged"] for row in rows) == {8: 3}
    assert {(row["flagged_rate"], row["flagged_right"]) for row in rows} == {(1.0, None)}
