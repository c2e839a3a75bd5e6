"""Cuts texts into tokens, clauses and sentences: what the learnt splitter labels.

A token is a word, a number, a run of one Japanese or Chinese script, or a punctuation mark. A clause ends at
a comma, bracket, quotation mark, dash or colon; a sentence at its punctuation mark or at the end of the line.
Everything takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

QUESTION_MARKS = frozenset("?？؟;፧⁇⁈⁉")
OPENING = frozenset("([（【「『«“„")
NO_GAP, BLANK, NEW_LINE, BLANK_LINE = range(4)  # what stands before a token
_LETTER = r"(?:(?![\u3041-\u30ff\u3400-\u9fff々〇])\w)"
_TOKEN = re.compile(
    rf"[\u3400-\u9fff々〇]+|[\u3041-\u309f]+|[\u30a0-\u30ff]+|{_LETTER}+(?:['’.,:/·-]{_LETTER}+)*|[^\w\s]"
)
_ENDS_SENTENCE = frozenset(".!?…。！？؟።।۔;")
_ENDS_WITHOUT_A_BLANK = frozenset("。！？")
_ENDS_CLAUSE = frozenset(",;:，、；：–—-)]）】」』»”\"'،؛|/•*")
_CLOSING = frozenset("\"'”’)]»」』）】》*_")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of some texts that stand one after another in one string.

    starts, ends: characters [start, end) of each token. text, sentence, clause: the number of each token's.
    gap: what stands before it, one of NO_GAP, BLANK, NEW_LINE, BLANK_LINE. signs: its first character.
    """

    starts: Indices
    ends: Indices
    text: Indices
    sentence: Indices
    clause: Indices
    gap: Indices
    signs: tuple[str, ...]


def tokens_of(whole: str, starts: Collection[int]) -> Tokens:
    """The tokens of texts that begin at `starts` of a string, each on a line of its own."""
    spans = [match.span() for match in _TOKEN.finditer(whole)]
    sentences: list[int] = []
    clauses: list[int] = []
    gaps: list[int] = []
    sentence, clause, before = -1, -1, 0
    new_clause, ended, last = True, True, ""
    for start, end in spans:
        gap, sign = whole[before:start], whole[start]
        lines = gap.count("\n") if gap else 0
        closes = sign in _CLOSING and not gap
        if lines or (ended and (gap or last in _ENDS_WITHOUT_A_BLANK) and not closes) or sentence < 0:
            sentence += 1
            clause += 1
        elif new_clause or sign in OPENING:
            clause += 1
        sentences.append(sentence)
        clauses.append(clause)
        gaps.append(min(lines, 2) + BLANK if lines else int(bool(gap)))
        alone = end - start == 1
        ended = alone and (sign in _ENDS_SENTENCE or (ended and closes))
        new_clause = alone and sign in _ENDS_CLAUSE
        last, before = sign, end
    places = np.array(spans, np.int64).reshape(-1, 2)
    return Tokens(
        places[:, 0],
        places[:, 1],
        np.searchsorted(np.array([*starts], np.int64), places[:, 0], side="right") - 1,
        np.array(sentences, np.int64),
        np.array(clauses, np.int64),
        np.array(gaps, np.int64),
        tuple(whole[start] for start, _ in spans),
    )
