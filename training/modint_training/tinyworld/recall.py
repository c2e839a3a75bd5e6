"""Rows of many short answers about one text or one picture: the language model's warm-up.

A text (a lettered list, a few sentences, sums, a caption) or a picture is followed by lines that each name
one thing and ask for another. Rows with many answers teach a small model to look things up within minutes;
rows with one answer, as in the suite, take far longer. The same is asked about captions as about pictures:
two sources of the same answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from modint_guard.data.perturb import CLAIMS
from modint_training.data.collate import Encoded
from modint_training.method.families import vision_of
from modint_training.method.labels import IGNORED
from modint_training.tinyworld import draw
from modint_training.tinyworld.language import USER
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

Query = tuple[str, str]  # what is named, and what is to be answered


@dataclass(frozen=True)
class RecallRow:
    """A text or a picture, and the queries about it, each written as one line `named:answer`."""

    head: str
    queries: list[Query]
    image: Image.Image | None = None


def encode_recall(row: RecallRow, processor: Any) -> Encoded:
    """The row as one user turn; only the answers are labels."""
    tokenizer = processor.tokenizer
    picture = ""
    if row.image is not None:
        picture = processor.image_token * vision_of(processor).image_tokens(processor, row.image)
    head = f"{tokenizer.bos_token}{USER}{picture}{row.head}"
    ids = tokenizer(head, add_special_tokens=False).input_ids
    labels = [IGNORED] * len(ids)
    for named, wanted in row.queries:
        cue = tokenizer(f"\n{named}:", add_special_tokens=False).input_ids
        answer = tokenizer(wanted, add_special_tokens=False).input_ids  # the token of a whole answer
        ids, labels = ids + cue + answer, labels + [IGNORED] * len(cue) + answer
    return Encoded(ids, labels, row.image)


def text_row(rng: random.Random) -> RecallRow:
    """A row about a text: a list, sums and orderings, or a caption."""
    (make,) = rng.choices(list(_TEXTS), list(_TEXTS.values()))
    head, queries = make(rng)
    rng.shuffle(queries)
    return RecallRow(head, queries)


def picture_row(rng: random.Random) -> RecallRow:
    """A row about a picture: its digit and the sum of that digit and others, or its figures."""
    if rng.random() < DIGIT:
        label = rng.randrange(10)
        image, _ = show_digit(str(label), rng, "train")
        queries = [("digit", str(label))]
        queries += [(f"plus {NUMBER_WORDS[n]}", str(label + n)) for n in range(1, 10 - label)]
        return RecallRow("", rng.sample(queries, min(4, len(queries))), image)
    drawn = scene(rng)
    shapes, colours = zip(*drawn.figures, strict=True)
    if drawn.kind == "pair":
        queries = [*zip(shapes, colours, strict=True), *zip(colours, shapes, strict=True)]
    else:
        queries = [("shape", shapes[0])]
        queries += [(f"{colour} shapes", str(colours.count(colour))) for colour in sorted(set(colours))]
        if drawn.kind != "mixed":
            queries += [("colour", colours[0]), ("count", str(len(shapes)))]
    rng.shuffle(queries)
    return RecallRow("", queries, drawn.image)


def look_up_row(rng: random.Random) -> RecallRow:
    """A row about who has what; the queries name a person, in a few words or as the suite asks."""
    owned = [
        (who, rng.choice(COLOURS), rng.choice(draw.SHAPES)) for who in rng.sample(NAMES, rng.choice(PEOPLE))
    ]
    briefly = rng.random() < 0.5
    queries = []
    for who, *values in owned:
        for kind, value in zip(("colour", "shape"), values, strict=True):
            wording = f"{kind} of {{who}}" if briefly else rng.choice(TASKS[f"lookup_{kind}"].wordings)
            queries.append((wording.format(who=who), value))
    rng.shuffle(queries)
    return RecallRow(" ".join(f"{who} has a {colour} {shape}." for who, colour, shape in owned), queries)


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
