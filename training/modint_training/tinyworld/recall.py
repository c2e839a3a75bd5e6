"""Look-up in text, asked many times a row: the language model's warm-up.

A lettered list or a few sentences, then lines that name one side and want the other. Many short answers a row
teach a small model to look things up within minutes; one answer a row, as in the suite, takes it far longer.
"""

import random

from modint_training.tinyworld import draw
from modint_training.tinyworld.tasks import COLOURS, DIGITS, LETTERED_CHOICES, NAMES

LISTS = (DIGITS, COLOURS, draw.SHAPES)
LETTERS = "ABCD"
SENTENCES = 0.3  # of rows; the others are lettered lists

Query = tuple[str, str]  # what is named, what is wanted


def recall_row(rng: random.Random) -> tuple[str, list[Query]]:
    """The text and the queries on it, each to be written as a line `named: wanted`."""
    head, queries = _sentences(rng) if rng.random() < SENTENCES else _list(rng)
    rng.shuffle(queries)
    return head, queries


def _list(rng: random.Random) -> tuple[str, list[Query]]:
    values = rng.sample(rng.choice(LISTS), LETTERED_CHOICES)
    pairs = list(zip(LETTERS, values, strict=True))
    return "\n".join(f"{letter}. {value}" for letter, value in pairs), [*pairs, *((v, k) for k, v in pairs)]


def _sentences(rng: random.Random) -> tuple[str, list[Query]]:
    owned = [(who, f"{rng.choice(COLOURS)} {rng.choice(draw.SHAPES)}") for who in rng.sample(NAMES, 3)]
    return " ".join(f"{who} has a {what}." for who, what in owned), owned * 2
