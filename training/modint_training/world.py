"""Generated worlds, which a recipe may train on instead of a data set: what a world offers, and how it is
found.

Worlds register under the entry-point group `modint_training.worlds`, so that general training imports none of
them. `data: NAME` in a recipe names one; any other value is the path of a data set.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from torch import nn

from modint_guard.data.item import FAMILIES, Family, Item, prompt
from modint_training.data.batches import Dress
from modint_training.data.reading import PLAIN, read_examples
from modint_training.data.sampler import ItemSource
from modint_training.loop.validation import ValidationSet
from modint_training.recipe import WORLDS, ReadingConfig, TuneRecipe


class Items(Protocol):
    """The first `count` items of a family in a split, the same at every call."""

    def __call__(
        self, family: Family, split: Literal["train", "validation", "test"], count: int, /
    ) -> list[Item]: ...


@dataclass(frozen=True)
class World:
    """An endless supply of labelled items.

    `source` gives the training items of a recipe, one for each slot of a batch. `validation(count)` gives the
    items that are measured during training, `count` for each condition. `test_rows(model, processor, count)`
    measures a model on `count` test items for each condition, and gives rows of accuracy; `test_items` is the
    count for a card, for whole replies take long. `dress` puts a twin's context where it stands in a chat.
    """

    items: Items
    source: Callable[[TuneRecipe], ItemSource]
    validation: Callable[[int], list[ValidationSet]]
    test_rows: Callable[[nn.Module, Any, int], Iterator[dict[str, Any]]]
    test_items: int = 800
    dress: Dress | None = None


@cache
def world_named(name: str) -> World | None:
    """The world of that name; None if there is none, and `name` is therefore the path of a data set."""
    for point in entry_points(group=WORLDS, name=name):
        world: World = point.load()
        return world
    return None


def data_digest(data: str, reading: ReadingConfig = PLAIN, *, count: int = 300) -> str:
    """The SHA-256 of what `data:` names, in hexadecimal: for a data set, of the files that hold its rows, as
    `data validate` prints it; for a world, of prompts, answers and pixels of the first `count` training items
    of each family."""
    world = world_named(data)
    if world is None:
        return read_examples(data, reading, check=False).digest()
    digest = hashlib.sha256()
    for family in FAMILIES:
        for item in world.items(family, "train", count):
            digest.update(_bytes(item))
    return digest.hexdigest()


def _bytes(item: Item) -> bytes:
    picture = item.image.tobytes() if item.image else b""
    return "\x1f".join((prompt(item), item.answer, item.wrong)).encode() + picture
