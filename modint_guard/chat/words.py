"""The words and the claims of an answer, as pieces of its text.

A word is what stands between blanks, without punctuation around it; "red/blue" is two. Scripts that write no
blanks between words (Chinese, Japanese, Thai and others) are cut where the model's tokens begin. A claim is a
line, such as the item of a list, a sentence, or a clause of one: it ends at a semicolon, and at a comma that
has at least three words, or what no blanks divide, on both of its sides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from itertools import pairwise

from modint_guard.chat.question import sentences_in
from modint_guard.types import Piece

_CLAUSE_END = re.compile(r"[;；]\s*|,\s+|[，、]\s*")
_LEAST_WORDS = 3  # on both sides of a comma that divides claims
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?:[—–/|,;:&]+|\.{2,}|…)(?=[^\W\d_])")
_MARKS = frozenset("`´~^<>=|+")  # around a word they are punctuation, though Unicode has them as symbols
# Thai, Lao, Myanmar and Khmer; kana and Chinese characters, with those beyond the basic plane.
_NO_BLANKS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def words_in(text: str, cuts: Collection[int] = ()) -> list[Piece]:
    """The words of a text, in order. If it is nothing but punctuation, that is its only word.

    cuts: the characters at which tokens begin.
    """
    begins = frozenset(cuts)
    words: list[Piece] = []
    for run in re.finditer(r"\S+", text):
        start, end = _without_marks(text, run.start(), run.end())
        for a, b in _divided(text, start, end):
            words += _by_script(text, a, b, begins)
    if words or not text.strip():
        return words
    return [(len(text) - len(text.lstrip()), len(text.rstrip()))]


def claims_in(text: str) -> list[Piece]:
    """The claims of a text, in order."""
    return [claim for sentence in sentences_in(text) for claim in _clauses(text, *sentence)]


def _clauses(text: str, start: int, end: int) -> list[Piece]:
    cuts = [start]
    for mark in _CLAUSE_END.finditer(text, start, end):
        divides = mark[0][0] in ";；" or (
            _is_clause(text[cuts[-1] : mark.start()]) and _is_clause(text[mark.end() : end])
        )
        if divides and mark.end() < end:
            cuts.append(mark.end())
    clauses = [(a, a + len(text[a:b].rstrip())) for a, b in zip(cuts, [*cuts[1:], end], strict=True)]
    return [(a, b) for a, b in clauses if a < b]


def _is_clause(text: str) -> bool:
    return len(text.split(None, _LEAST_WORDS)) >= _LEAST_WORDS or bool(_NO_BLANKS.search(text))


def _without_marks(text: str, start: int, end: int) -> Piece:
    while start < end and _is_mark(text[start]):
        start += 1
    while end > start and _is_mark(text[end - 1]):
        end -= 1
    return start, end


def _is_mark(sign: str) -> bool:
    return sign in _MARKS or unicodedata.category(sign).startswith("P")


def _divided(text: str, start: int, end: int) -> list[Piece]:
    pieces, at = [], start
    for mark in _BETWEEN_WORDS.finditer(text, start, end):
        pieces.append((at, mark.start()))
        at = mark.end()
    return [(a, b) for a, b in [*pieces, (at, end)] if a < b]


def _by_script(text: str, start: int, end: int, begins: frozenset[int]) -> list[Piece]:
    """One word, cut within its parts of a script without blanks and at their ends."""
    cuts = {start, end}
    for part in _NO_BLANKS.finditer(text, start, end):
        cuts |= {part.start(), part.end()} | {at for at in range(part.start(), part.end()) if at in begins}
    ordered = sorted(cuts)
    pieces = (_without_marks(text, a, b) for a, b in pairwise(ordered))
    return [(a, b) for a, b in pieces if a < b]
