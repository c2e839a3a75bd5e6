"""TinyWorld as training offers it: training items, validation sets, and test accuracy."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from modint_guard.data.item import Form, Item
from modint_guard.data.perturb import seeded
from modint_training.data.sampler import ItemSource, Slot
from modint_training.loop.predict import right_first_words
from modint_training.loop.validation import ValidationSet
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld import suite, tasks
from modint_training.tinyworld.conditions import CLEAN_KIND, HELD_OUT_WORDINGS, SELF_ASKED, WATCHED, breakdown
from modint_training.world import World


def training_source(recipe: TuneRecipe) -> ItemSource:
    """TinyWorld's endless training items, one for each slot."""

    def item(slot: Slot) -> Item:
        rng = seeded("lora-item", recipe.seed, slot.index)
        task = rng.choice(suite.tasks_of(slot.family))
        form: Form = "letter" if rng.random() < (recipe.letter or 0) else "word"
        return tasks.build(task, f"train-{recipe.seed}-lora-{slot.index}", rng, "train", form=form)

    return item


def validation_sets(count: int) -> list[ValidationSet]:
    """`count` items of the validation split under each watched condition."""
    return [
        ValidationSet(
            condition.name,
            condition.items("validation", count),
            f"{condition.family}/{CLEAN_KIND[condition.family]}",
        )
        for condition in WATCHED
    ]


def accuracy_rows(model: nn.Module, processor: Any, count: int) -> Iterator[dict[str, Any]]:
    """Accuracy on `count` test items under each condition (watched, held-out wordings, self-asked), by form
    and sub-task."""
    for condition in (*WATCHED, *HELD_OUT_WORDINGS, *SELF_ASKED):
        items = condition.items("test", count)
        yield from breakdown(condition, items, right_first_words(model, processor, items))


WORLD = World(items=suite.items, source=training_source, validation=validation_sets, test_rows=accuracy_rows)
