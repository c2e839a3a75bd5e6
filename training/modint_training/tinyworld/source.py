"""TinyWorld as a source of training batches and of watched items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from modint_guard.data.item import Form, Item
from modint_guard.data.perturb import CLEAN, seeded
from modint_training.data.collate import Encoded, image_tokens
from modint_training.data.sampler import Slot, Source
from modint_training.loop.predict import accuracy, right
from modint_training.loop.validation import Watched
from modint_training.method.labels import IGNORED
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld import suite, tasks
from modint_training.tinyworld.conditions import HELD_OUT_WORDINGS, SELF_ASKED, WATCHED, breakdown
from modint_training.tinyworld.language import USER
from modint_training.tinyworld.recall import Row
from modint_training.world import World


def encode_recall(row: Row, processor: Any) -> Encoded:
    """A user turn of what is given and one line `named:wanted` a query; only what is wanted is a label."""
    tokenizer = processor.tokenizer
    picture = processor.image_token * image_tokens(processor) if row.image is not None else ""
    given = f"{tokenizer.bos_token}{USER}{picture}{row.head}"
    ids = tokenizer(given, add_special_tokens=False).input_ids
    labels = [IGNORED] * len(ids)
    for named, wanted in row.queries:
        cue = tokenizer(f"\n{named}:", add_special_tokens=False).input_ids
        answer = tokenizer(wanted, add_special_tokens=False).input_ids  # the token of a whole answer
        ids, labels = ids + cue + answer, labels + [IGNORED] * len(cue) + answer
    return Encoded(ids, labels, row.image)


def tinyworld_source(recipe: TuneRecipe) -> Source:
    """TinyWorld's endless training items, one a slot."""

    def item(slot: Slot) -> Item:
        rng = seeded("lora-item", recipe.seed, slot.index)
        task = rng.choice(suite.tasks_of(slot.family))
        form: Form = "letter" if rng.random() < (recipe.letter or 0) else "word"
        return tasks.build(task, f"train-{recipe.seed}-lora-{slot.index}", rng, "train", form=form)

    return item


def tinyworld_watched(count: int) -> list[Watched]:
    """`count` items of TinyWorld's validation split under each watched condition."""
    clean = {"text-heavy": "text-heavy/no_image"}
    return [
        Watched(cell.name, cell.items("validation", count), clean.get(cell.family, f"{cell.family}/{CLEAN}"))
        for cell in WATCHED
    ]


def watch(processor: Any, count: int) -> Callable[[nn.Module, int], dict[str, float]]:
    """What an `Evaluation` calls: accuracy on `count` validation items under each watched condition."""
    sets = {cell.name: cell.items("validation", count) for cell in WATCHED}
    return lambda net, step: {name: accuracy(net, processor, items) for name, items in sets.items()}


def split_rows(model: nn.Module, processor: Any, count: int) -> Iterator[dict[str, Any]]:
    """Accuracy on `count` test items a condition (watched, other wordings, self-asks), by form and task."""
    for cell in (*WATCHED, *HELD_OUT_WORDINGS, *SELF_ASKED):
        items = cell.items("test", count)
        yield from breakdown(cell, items, right(model, processor, items))


WORLD = World(items=suite.items, source=tinyworld_source, watched=tinyworld_watched, test_rows=split_rows)
