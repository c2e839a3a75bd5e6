"""The picture-book as a world: training items, validation items, and rows of test accuracy."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from modint_guard.data.item import Item
from modint_guard.data.perturb import CLEAN, seeded
from modint_training.data.sampler import ItemSource, Slot
from modint_training.loop.validation import ValidationSet
from modint_training.picturebook import suite
from modint_training.picturebook.conditions import (
    BARS,
    HELD_OUT_CAPTIONS,
    HELD_OUT_STYLE,
    HELD_OUT_THINGS,
    HELD_OUT_WORDINGS,
    WATCHED,
    breakdown,
)
from modint_training.picturebook.desk import Desk
from modint_training.picturebook.replies import right
from modint_training.picturebook.tasks import TASKS
from modint_training.recipe import TuneRecipe
from modint_training.world import World


def training_source(recipe: TuneRecipe) -> ItemSource:
    """The picture-book's endless training items, one a slot; `letter` is the share of lettered questions
    among those about a picture."""

    def item(slot: Slot) -> Item:
        rng = seeded("picturebook-lora", recipe.seed, slot.index)
        tasks = [task for task in suite.tasks_of(slot.family) if task.name != "lettered"]
        task = rng.choices(tasks, [task.weight for task in tasks])[0]
        if slot.family == "image-heavy" and rng.random() < (recipe.letter or 0):
            task = TASKS["lettered"]
        return task.make(Desk(f"train-{recipe.seed}-lora-{slot.index}", rng))

    return item


def validation_sets(count: int) -> list[ValidationSet]:
    """`count` items of the validation split under each watched condition."""
    clean = {"text-heavy": "text-heavy/no_image"}
    return [
        ValidationSet(
            condition.name,
            condition.items("validation", count),
            clean.get(condition.family, f"{condition.family}/{CLEAN}"),
        )
        for condition in WATCHED
    ]


def split_rows(model: nn.Module, processor: Any, count: int) -> Iterator[dict[str, Any]]:
    """Accuracy of whole replies on `count` test items a condition, by sub-task."""
    held_out = (*HELD_OUT_WORDINGS, *HELD_OUT_CAPTIONS, *HELD_OUT_STYLE, *HELD_OUT_THINGS)
    for condition in (*WATCHED, *held_out):
        items = condition.items("test", count)
        yield from breakdown(condition, items, right(model, processor, items))


def bars(model: nn.Module, processor: Any, count: int) -> Iterator[tuple[str, float]]:
    """The figures by which a base is chosen: accuracy on `count` test items under each of `BARS`."""
    for name, condition in BARS.items():
        hits = right(model, processor, condition.items("test", count))
        yield name, sum(hits) / len(hits)


WORLD = World(items=suite.items, source=training_source, validation=validation_sets, test_rows=split_rows)
