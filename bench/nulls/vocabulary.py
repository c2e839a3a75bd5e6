"""The words in which an answer goes on that must not end yet.

What a small model says behind the end of its answer, left to itself, is a string of odd tokens that are split
otherwise when they are read again, so that it cannot be scored as a whole. Kept to the tokens of its world's
answers it goes on in sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from modint_training.picturebook.tasks import CATEGORIES
from modint_training.picturebook.things import THINGS
from modint_training.picturebook.wordings import COLOURS, PEOPLE, PEOPLE_HELD_OUT, SPOTS


def token_ids(folder: Path) -> list[int]:
    """The ids of all tokens of the answers that the picture-book's questions may have, in order.

    folder: of a model, with its tokenizer. Raises OSError without one.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sorted(
        {token for text in _answers() for token in tokenizer.encode(text, add_special_tokens=False)}
    )


def _answers() -> Iterator[str]:
    words = (*COLOURS, *PEOPLE, *PEOPLE_HELD_OUT, *SPOTS, *CATEGORIES, *map(str, range(20)), "yes", "no")
    for thing in THINGS:
        yield f"The picture shows {thing.a}. The picture shows {thing.a}."
        words = (*words, thing.name, thing.a)
    for word in words:
        yield from (f"{word}.", f"{word[:1].upper()}{word[1:]}. {word}.")
