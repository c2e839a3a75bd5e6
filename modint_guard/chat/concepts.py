"""What a text speaks of, in any of some twenty languages: the concepts of its words, from `concepts.txt`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).with_name("concepts.txt")
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(
    r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
)  # words are not set apart, or take endings
_ARABIC_PREFIXES = ("وال", "بال", "ال", "و", "ب", "ل", "ف")
_MAX_STEM, _MAX_UNSPACED, _MAX_WORD = 12, 4, 40
_SHORT = 3  # letters; so short a stem stands for the whole word


def concepts_in(text: str) -> list[str]:
    """The concepts that a text names, in order and with repetitions."""
    return [
        concept for match in _WORD.finditer(text.lower()) for concept in _of_word(match.group()[:_MAX_WORD])
    ]


@lru_cache(maxsize=20_000)
def _of_word(word: str) -> tuple[str, ...]:
    exact, stems, pieces = _lexicon()
    if _UNSPACED.search(word):
        starts = ((start, length) for start in range(len(word)) for length in range(1, _MAX_UNSPACED + 1))
        places = [word[start : start + length] for start, length in starts if start + length <= len(word)]
        return tuple(concept for place in places for concept in pieces.get(place, ()))
    forms = [
        word,
        *(word.removeprefix(p) for p in _ARABIC_PREFIXES if word.startswith(p) and len(word) > len(p) + 2),
    ]
    found: list[str] = []
    for form in forms:
        found.extend(exact.get(form, ()))
        for length in range(_SHORT + 1, min(len(form), _MAX_STEM) + 1):
            found.extend(stems.get(form[:length], ()))
    return tuple(found)


Lexicon = dict[str, tuple[str, ...]]


@lru_cache(maxsize=1)
def _lexicon() -> tuple[Lexicon, Lexicon, Lexicon]:
    """Concepts by whole word, by beginning of a word, and by piece of an unspaced text."""
    tables: tuple[dict[str, set[str]], ...] = ({}, {}, {})
    for line in _FILE.read_text("utf-8").splitlines():
        name, colon, words = line.partition(":")
        if line.startswith("#") or not colon:
            continue
        for word in words.lower().split():
            kind = 0 if word.startswith("=") else 2 if _UNSPACED.search(word) else int(len(word) > _SHORT)
            tables[kind].setdefault(word.lstrip("="), set()).add(name)
    exact, stems, pieces = ({word: tuple(sorted(names)) for word, names in t.items()} for t in tables)
    return exact, stems, pieces
