"""Pictures of figures, of every kind that the sub-tasks show, with a description of all that is in them.

The warm-ups of vision tower and language model train on them: a whole scene teaches more than one answer.
"""

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from modint_training.tinyworld import draw
from modint_training.tinyworld.tasks import COLOURS

Kind = Literal["one", "pair", "same", "mixed"]
KINDS: dict[Kind, float] = {"one": 0.15, "pair": 0.35, "same": 0.15, "mixed": 0.35}
MOST = 6  # equal figures in a picture, at most


@dataclass(frozen=True)
class Scene:
    """A picture and its figures as (shape, colour)."""

    kind: Kind
    figures: tuple[tuple[str, str], ...]
    image: Image.Image


def scene(rng: random.Random) -> Scene:
    """One figure, two that differ in shape and colour, several equal ones, or one shape in two colours."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    figures = _FIGURES[kind](rng)
    return Scene(kind, tuple(figures), draw.shapes(figures, rng))


def counts(figures: tuple[tuple[str, str], ...]) -> list[int]:
    """The number of figures of each shape in each colour, ordered by shape, then colour."""
    return [figures.count((shape, colour)) for shape in draw.SHAPES for colour in COLOURS]


def _one(rng: random.Random) -> list[tuple[str, str]]:
    return [(rng.choice(draw.SHAPES), rng.choice(COLOURS))]


def _pair(rng: random.Random) -> list[tuple[str, str]]:
    return list(zip(rng.sample(draw.SHAPES, 2), rng.sample(COLOURS, 2), strict=True))


def _same(rng: random.Random) -> list[tuple[str, str]]:
    return _one(rng) * rng.randint(2, MOST)


def _mixed(rng: random.Random) -> list[tuple[str, str]]:
    shape, (first, second) = rng.choice(draw.SHAPES), rng.sample(COLOURS, 2)
    figures = [(shape, first)] * rng.randint(1, 4) + [(shape, second)] * rng.randint(1, 3)
    rng.shuffle(figures)
    return figures


_FIGURES = {"one": _one, "pair": _pair, "same": _same, "mixed": _mixed}
