"""Rows of many short answers about one text or one picture: the language model's warm-up.

A text (a lettered list, a few sentences, sums, a caption) or a picture, then lines that name one thing and
want another. Many answers a row teach a small model to look things up within minutes; one answer a row, as in
the suite, takes it far longer. Captions are asked what pictures are asked: two sources of the same answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from modint_guard.data.perturb import CLAIMS
from modint_training.tinyworld import draw
from modint_training.tinyworld.scenes import scene
from modint_training.tinyworld.tasks import (
    COLOURS,
    DIGITS,
    LETTERED_CHOICES,
    NAMES,
    NUMBER_WORDS,
    TASKS,
    show_digit,
)

LISTS = (DIGITS, COLOURS, draw.SHAPES)
LETTERS = "ABCD"
SUMS = 8  # a row
PEOPLE = (2, 3, 4)  # in a text
DIGIT = 0.4  # of picture rows; the others show figures

Query = tuple[str, str]  # what is named, what is wanted


@dataclass(frozen=True)
class Row:
    """What is given (a text, a picture) and the queries on it, each to be written as `named:wanted`."""

    head: str
    queries: list[Query]
    image: Image.Image | None = None


def text_row(rng: random.Random) -> Row:
    """A row about a text: a list, sums and orderings, or a caption."""
    (make,) = rng.choices(list(_TEXTS), list(_TEXTS.values()))
    head, queries = make(rng)
    rng.shuffle(queries)
    return Row(head, queries)


def picture_row(rng: random.Random) -> Row:
    """A row about a picture: its digit and that digit plus others, or its figures."""
    if rng.random() < DIGIT:
        label = rng.randrange(10)
        image, _ = show_digit(str(label), rng, "train")
        queries = [("digit", str(label))]
        queries += [(f"plus {NUMBER_WORDS[n]}", str(label + n)) for n in range(1, 10 - label)]
        return Row("", rng.sample(queries, min(4, len(queries))), image)
    seen = scene(rng)
    shapes, colours = zip(*seen.figures, strict=True)
    if seen.kind == "pair":
        queries = [*zip(shapes, colours, strict=True), *zip(colours, shapes, strict=True)]
    else:
        queries = [("shape", shapes[0])]
        queries += [(f"{colour} shapes", str(colours.count(colour))) for colour in sorted(set(colours))]
        if seen.kind != "mixed":
            queries += [("colour", colours[0]), ("count", str(len(shapes)))]
    rng.shuffle(queries)
    return Row("", queries, seen.image)


def look_up_row(rng: random.Random) -> Row:
    """A row about who has what, asked by name in a few words or as the suite asks."""
    owned = [
        (who, rng.choice(COLOURS), rng.choice(draw.SHAPES)) for who in rng.sample(NAMES, rng.choice(PEOPLE))
    ]
    briefly = rng.random() < 0.5
    queries = []
    for who, *values in owned:
        for kind, value in zip(("colour", "shape"), values, strict=True):
            asked = f"{kind} of {{who}}" if briefly else rng.choice(TASKS[f"lookup_{kind}"].wordings)
            queries.append((asked.format(who=who), value))
    rng.shuffle(queries)
    return Row(" ".join(f"{who} has a {colour} {shape}." for who, colour, shape in owned), queries)


def _list(rng: random.Random) -> tuple[str, list[Query]]:
    values = rng.sample(rng.choice(LISTS), LETTERED_CHOICES)
    pairs = list(zip(LETTERS, values, strict=True))
    return "\n".join(f"{letter}. {value}" for letter, value in pairs), [*pairs, *((v, k) for k, v in pairs)]


def _sums(rng: random.Random) -> tuple[str, list[Query]]:
    return "", [rng.choice((_sum, _sum, _order))(rng) for _ in range(SUMS)]


def _sum(rng: random.Random) -> Query:
    total, part = sorted((rng.randrange(10), rng.randrange(10)), reverse=True)
    a, sign, b, result = rng.choice(
        ((part, "plus", total - part, total), (total, "minus", part, total - part))
    )
    words = rng.random() < 0.25
    return f"{NUMBER_WORDS[a] if words else a} {sign} {NUMBER_WORDS[b] if words else b}", str(result)


def _order(rng: random.Random) -> Query:
    a, b, c = rng.sample(range(10), 3)
    most, pick = rng.choice((("largest", max), ("smallest", min)))
    return f"{most} of {a}, {b} and {c}", str(pick(a, b, c))


def _caption(rng: random.Random) -> tuple[str, list[Query]]:
    name = rng.choice(("digit", "shape", "colour", "count"))
    answer = rng.choice(TASKS[name].choices)
    return rng.choice(CLAIMS).format(claim=TASKS[name].claim.format(answer)), [(name, answer)]


_TEXTS: dict[Callable[[random.Random], tuple[str, list[Query]]], float] = {
    _list: 0.4,
    _sums: 0.4,
    _caption: 0.2,
}
