"""The labelled items that a command asks: those of a data set, or of a generated world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, cast

import typer

from modint_guard.data import first_of_each
from modint_guard.data.item import FAMILIES, Item
from modint_guard.data.options import ReadingOptions
from modint_guard.errors import ConfigError
from modint_guard.evaluation.extensions import SPLITS, WORLDS, World, WorldSplit, load

OF_A_WORLD = 100  # items of each family, unless --limit says how many

KINDS_OF_DATA = (
    "A JSON, JSONL, Parquet or Arrow file, a folder, or a generated world: tinyworld, picturebook."
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=KINDS_OF_DATA)]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The first labelled items of each family; of a world as many again in held-out wordings."
        f" Default: all; of a world {OF_A_WORLD}.",
    ),
]


def items_of(
    data: str,
    how: ReadingOptions,
    *,
    limit: int | None,
    seed: int,
    split: WorldSplit,
    worlds: Iterable[EntryPoint] | None = None,
) -> list[Item]:
    """The items of the world of that name, or of the data set at that path.

    limit: as the option says. seed: of a world's items. split: of a world, unless the options name one.
    worlds: the entry points to choose from; those that are installed if None. Raises DataError and
    ConfigError.
    """
    points = entry_points(group=WORLDS) if worlds is None else worlds
    if named := [point for point in points if point.name == data]:
        return _of_a_world(named[0], _split_of_world(data, how, split), limit or OF_A_WORLD, seed)
    rows = how.read(Path(data))
    # If none has a label, all are given: what needs labels then says of how many rows none has one.
    return (first_of_each(rows, limit) if limit else []) or list(rows)


def labelled_items(items: Sequence[Item]) -> list[Item]:
    """Those with an answer. Raises ConfigError if none has one, or if two have the same id."""
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise ConfigError(f"the id {twice[0]!r} stands twice in the data: give every item its own")
    labelled = [item for item in items if item.labelled]
    if not labelled:
        raise ConfigError(f"none of {len(items)} items has an answer to compare with: give labelled ones")
    return labelled


def _of_a_world(point: EntryPoint, split: WorldSplit, count: int, seed: int) -> list[Item]:
    world: World = load([point], f"the world {point.name}")
    return [
        item
        for family in FAMILIES
        for held_out in (False, True)
        for item in world(family, split, count, seed=seed, held_out=held_out)
    ]


def _split_of_world(name: str, how: ReadingOptions, default: WorldSplit) -> WorldSplit:
    """Raises ConfigError for options that only make sense for the rows of a file, and for another split."""
    named = [option for option, value in how.typed.items() if value and option != "split"]
    if named:
        raise ConfigError(
            f"--{named[0].replace('_', '-')} says how rows of your own are read, and {name} is a generated"
            " world: leave it out"
        )
    if how.split is not None and how.split not in SPLITS:
        raise ConfigError(f"{name} has no split {how.split!r}: name one of {', '.join(SPLITS)}")
    return cast(WorldSplit, how.split or default)
