"""What other packages bring to an evaluation, found by entry point: local models and generated worlds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint
from typing import Any, Literal, Protocol, get_args

from modint_guard.data.item import Family, Item
from modint_guard.errors import ConfigError
from modint_guard.types import Complete

LOCAL = "modint_guard.local"  # entry points: how a model is loaded in this process (`LocalModel`)
WORLDS = "modint_guard.worlds"  # entry points: a generated world's name and its items (`World`)
WorldSplit = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(WorldSplit)


class LocalModel(Protocol):
    """A model loaded in this process, and let go when the context is left.

    model, adapter: bundled ones or folders. image_attention: by how much its attention to pictures is scaled.
    Raises ConfigError for what cannot be loaded.
    """

    def __call__(
        self, model: str, adapter: str | None, *, image_attention: float
    ) -> AbstractContextManager[Complete]: ...


class World(Protocol):
    """`count` labelled items of a family and split; the same arguments always give the same items.

    held_out: ask them in wordings that no training uses.
    """

    def __call__(
        self, family: Family, split: WorldSplit, count: int, /, *, seed: int, held_out: bool
    ) -> list[Item]: ...


def load(points: Iterable[EntryPoint], needed_by: str) -> Any:
    """What the first of the entry points names.

    Raises ConfigError, with the extra to install, if there is none or a library is missing for it.
    """
    remedy = f"{needed_by} needs: pip install 'modint-guard[train]'"
    for point in points:
        try:
            return point.load()
        except ModuleNotFoundError as exc:
            if (exc.name or "").startswith("modint_"):
                raise  # a fault of ours
            raise ConfigError(remedy) from exc
    raise ConfigError(remedy)
