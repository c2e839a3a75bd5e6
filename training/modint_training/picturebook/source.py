"""The picture-book as a world: training items, validation items, and rows of test accuracy."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import CLEAN, seeded
from modint_training.data.sampler import ItemSource, Slot
from modint_training.loop.validation import ValidationSet
from modint_training.picturebook import draw, suite
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
from modint_training.picturebook.placing import TRAINED_PLACEMENTS, placed
from modint_training.picturebook.replies import right
from modint_training.picturebook.tasks import TASKS, Task
from modint_training.recipe import TuneRecipe
from modint_training.world import World

# Of items that need both modalities, those whose picture is too poor to answer from, under a true caption.
# The recipe's quotas and controls make them as many as lying captions: with half as many an adapter learned
# to read no caption.
POOR = 0.5
# Of questions about clear pictures. The loss is a mean over tokens, and an answer of one word has few, so it
# is learned late under lies.
YES_NO = 0.25
# Where the captions of twins stand, as `TRAINED_PLACEMENTS` lists the places.
PLACES = (0.5, 0.2, 0.18, 0.12)
# The base was never taught these: their long answers would be most of an adapter's loss, and its clean skill
# would be lost to them.
UNTAUGHT = ("scene", "beside")
AFTER = 0.3  # of texts and price lists; the others stand before the question


def training_source(recipe: TuneRecipe) -> ItemSource:
    """The picture-book's endless training items, one a slot; `letter` is the share of lettered questions
    among those about a picture."""

    def item(slot: Slot) -> Item:
        rng = seeded("picturebook-lora", recipe.seed, slot.index)
        desk = Desk(f"train-{recipe.seed}-lora-{slot.index}", rng)
        if slot.family == "vqa" and rng.random() < POOR:
            return _poor(desk)
        clean = _task(slot.family, recipe, rng).make(desk)
        if slot.family == "image-heavy":
            return clean
        return placed(clean, "after" if rng.random() < AFTER else "before", rng)

    return item


def _task(family: Family, recipe: TuneRecipe, rng: random.Random) -> Task:
    if family == "image-heavy":
        drawn, letter = rng.random(), recipe.letter or 0
        if drawn < letter:
            return TASKS["lettered"]
        if drawn < letter + YES_NO:
            return TASKS["yes_no"]
    return _by_weight(family, rng, but=("lettered", "yes_no"))


def _by_weight(family: Family, rng: random.Random, *, but: Sequence[str] = ()) -> Task:
    """A sub-task that the base was taught, drawn as often as its weight says."""
    tasks = [task for task in suite.tasks_of(family) if task.name not in (*but, *UNTAUGHT)]
    return rng.choices(tasks, [task.weight for task in tasks])[0]


def _poor(desk: Desk) -> Item:
    """A question about a picture that is hard to read, under a true caption: both are needed."""
    clean = _by_weight("image-heavy", desk.rng).make(desk)
    assert clean.image is not None
    poor = draw.poor(clean.image, desk.rng)
    return dress(clean.replace(family="vqa", image=poor, context=clean.truth), desk.rng)


def dress(item: Item, rng: random.Random) -> Item:
    """A captioned item with its caption at any place that may be trained on; others as they are."""
    if item.family == "text-heavy":
        return item
    return placed(item, rng.choices(TRAINED_PLACEMENTS, PLACES)[0], rng)


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


WORLD = World(
    items=suite.items,
    source=training_source,
    validation=validation_sets,
    test_rows=split_rows,
    test_items=100,
    dress=dress,
)
