"""What kind of word a word is: one that asks, in some twenty languages, or one that names a concept."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

from modint_guard.chat.concepts import concepts_in

ASKS, MAY_ASK = 1, 2  # kinds of words
_FILE = Path(__file__).with_name("question_words.txt")
_MAX_WORD = 40


@lru_cache(maxsize=20_000)
def kind_of(word: str) -> int:
    """ASKS for a word that asks, MAY_ASK for the ending of a verb that may, 0 for a word of which nothing is
    known, else a number that stands for the first concept that the word names.
    """
    lower = word.lower()[:_MAX_WORD]
    exact, beginnings, pieces, endings = _lists()
    if lower in exact or lower.startswith(beginnings) or any(piece in lower for piece in pieces):
        return ASKS
    if lower.endswith(endings):
        return MAY_ASK
    concepts = concepts_in(lower)
    return zlib.crc32(concepts[0].encode()) + MAY_ASK + 1 if concepts else 0


@lru_cache(maxsize=1)
def _lists() -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Whole words, beginnings of words, pieces of words and endings of verbs."""
    lists: dict[str, list[str]] = {"exact": [], "beginning": [], "piece": [], "ending": []}
    for line in _FILE.read_text("utf-8").splitlines():
        name, colon, words = line.partition(":")
        if colon and not line.startswith("#"):
            lists[name] += words.split()
    exact, beginnings, pieces, endings = (tuple(words) for words in lists.values())
    return frozenset(exact), beginnings, pieces, endings
