"""A generated world in place of a data set: what training asks of one, and how it is found.

Worlds register themselves under the entry-point group `modint_training.worlds`, so that general training
imports none of them. `data: NAME` in a recipe names one; every other value is a path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from torch import nn

from modint_guard.data.item import Family, Item
from modint_training.data.sampler import Source
from modint_training.loop.validation import Watched
from modint_training.recipe import TuneRecipe

GROUP = "modint_training.worlds"


class Items(Protocol):
    """`count` items of a family in a split ("train", "validation", "test"), the same at every call."""

    def __call__(
        self, family: Family, split: Literal["train", "validation", "test"], count: int, /
    ) -> list[Item]: ...


@dataclass(frozen=True)
class World:
    """An endless supply of labelled items.

    source: training items for a recipe, one for each slot of a batch. watched: validation items, so many for
    each condition that is measured during training. test_rows: rows of test accuracy of a model and its
    processor, on so many items for each condition.
    """

    items: Items
    source: Callable[[TuneRecipe], Source]
    watched: Callable[[int], list[Watched]]
    test_rows: Callable[[nn.Module, Any, int], Iterator[dict[str, Any]]]


@cache
def world_named(name: str) -> World | None:
    """The world of that name; None where there is none, and `name` is the path of a data set."""
    for point in entry_points(group=GROUP, name=name):
        world: World = point.load()
        return world
    return None
