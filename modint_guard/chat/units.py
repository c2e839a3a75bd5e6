"""Cuts a text into units: the clauses of its sentences, lines, brackets and quotations.

People leave out full stops ("my nephew says it is a rabbit what animal is this"). Words that often begin a
new part of a request, in any language, are fitted on labelled requests; a unit begins at each of them too.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from modint_guard.types import Piece

_CUT = re.compile(
    r"(?<=[.!?…;])[\"'”’»)\]*]*\s+|\n+|(?<=[。！？؟।،、；，：!?])|(?<=[,;:])\s+|\s+[–—-]+\s+"
    r"|(?<=\))\s+|\s+(?=\()|(?<=[”\"»])\s+|\s+(?=[“\"«])"
)
_WORD = re.compile(r"(?<=\s)\w+")
_STOPS = tuple(".!?…。！？؟।")
_MAX_SENTENCE_UNITS = 12
_MAX_UNITS, _KEPT_AT_THE_END = 200, 60


@dataclass(frozen=True, slots=True)
class Unit:
    """Characters [start, end) of a text; `sentence` numbers the sentence that they belong to."""

    start: int
    end: int
    sentence: int


def units_of(text: str, openers: frozenset[str] = frozenset()) -> list[Unit]:
    """The units of a text, in order, without the white space around them; some 200 at most: of longer texts,
    neighbouring ones before the last 60 are one. openers: words that begin one.
    """
    units: list[Unit] = []
    sentence, first = 0, 0
    for start, end in _joined(_pieces(text, openers)):
        if units and (_ends(text, units[-1].end, start) or len(units) - first >= _MAX_SENTENCE_UNITS):
            sentence, first = sentence + 1, len(units)
        units.append(Unit(start, end, sentence))
    return units


def _pieces(text: str, openers: frozenset[str]) -> list[Piece]:
    opened = (word.start() for word in _WORD.finditer(text) if word.group().lower() in openers)
    cuts = sorted({0, *(match.end() for match in _CUT.finditer(text)), *opened, len(text)})
    pieces: list[Piece] = []
    for start, end in itertools.pairwise(cuts):
        part = text[start:end]
        if stripped := part.strip():
            begin = start + part.index(stripped[0])
            pieces.append((begin, begin + len(stripped)))
    return pieces


def _joined(pieces: list[Piece]) -> list[Piece]:
    """At most _MAX_UNITS pieces: as many neighbours as need be made one, save for the last ones."""
    if len(pieces) <= _MAX_UNITS:
        return pieces
    first, last = pieces[:-_KEPT_AT_THE_END], pieces[-_KEPT_AT_THE_END:]
    step = -(-len(first) // (_MAX_UNITS - _KEPT_AT_THE_END))
    runs = [first[start : start + step] for start in range(0, len(first), step)]
    return [*((run[0][0], run[-1][1]) for run in runs), *last]


def _ends(text: str, end: int, following: int) -> bool:
    """Whether a sentence ends between two neighbouring units."""
    return text.endswith(_STOPS, 0, end) or "\n" in text[end:following]
