"""The objects and lists of a large JSON document, found without being read.

They are looked for in pieces of the document and by numpy, so that other threads run meanwhile: a parser
holds them all up for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

DEEPEST = 8  # entries of log-probabilities lie at most seven objects and lists deep
PIECE = 2**20  # bytes
_BLANKS = b" \t\r\n"
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_IS_SIGN = np.zeros(256, np.bool_)
_IS_SIGN[list(b'"\\{}[]')] = True
_CLOSES = 4  # the bit that `]` and `}` have, and `[` and `{` have not


@dataclass(frozen=True, slots=True)
class Container:
    """An object or a list within `document`, whose brackets are those of the numbers `first` and `last`.

    at: where each bracket of the document is, but those more than DEEPEST deep. level: how deep, from 1.
    """

    document: memoryview
    at: NDArray[np.int64]  # (brackets,)
    level: NDArray[np.int8]  # (brackets,)
    first: int
    last: int

    @property
    def written(self) -> memoryview:
        """Its bytes."""
        return self.document[self.at[self.first] : self.at[self.last] + 1]

    @property
    def is_deepest(self) -> bool:
        """Whether nothing is known of what it contains."""
        return bool(self.level[self.first] >= DEEPEST)

    def read(self) -> Any:
        """It with a `Container` for each object and list directly within; not for a deepest one. Raises
        ValueError for no JSON.
        """
        inner = self.level[self.first + 1 : self.last] == self.level[self.first] + 1
        pairs = (np.flatnonzero(inner) + self.first + 1).reshape(-1, 2).tolist()
        within = [Container(self.document, self.at, self.level, *pair) for pair in pairs]
        outline = orjson.loads(_outline(self, within))  # every list in it is the number of a container
        if isinstance(outline, list):
            return [within[value[0]] if isinstance(value, list) else value for value in outline]
        return {
            name: within[value[0]] if isinstance(value, list) else value for name, value in outline.items()
        }


def container(document: bytes, piece: int = PIECE) -> Container:
    """The object or list that a document is. Raises ValueError for one that is neither.

    piece: how many bytes are looked through at a time.
    """
    found = list(_brackets(document, piece))
    at, level = (np.concatenate([each[part] for each in found]) for part in (0, 1))
    ends = np.flatnonzero(level == 1)
    if len(ends) != 2 or document[: at[ends[0]]].strip(_BLANKS) or document[at[ends[1]] + 1 :].strip(_BLANKS):
        raise ValueError("this is no JSON object and no list")
    return Container(memoryview(document), at, level, int(ends[0]), int(ends[1]))


def _outline(container: Container, within: list[Container]) -> bytes:
    """What is written in a container, with `[0]` for the first object or list in it, and so on."""
    document, pieces = container.document, list[bytes | memoryview]()
    start = container.at[container.first]
    for number, each in enumerate(within):
        pieces += (document[start : each.at[each.first]], b"[%d]" % number)
        start = each.at[each.last] + 1
    pieces.append(document[start : container.at[container.last] + 1])
    return b"".join(pieces)


def _brackets(document: bytes, piece: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int8]]]:
    """Where the brackets outside of strings are, and the levels of what they enclose, piece by piece."""
    start, depth, is_inside = 0, 0, False
    while start < len(document):
        end = min(start + piece, len(document))
        while document[end - 1] == _BACKSLASH and end < len(document):  # what it escapes is in the same piece
            end += 1
        signs = np.frombuffer(document, np.uint8, end - start, start)
        at = np.flatnonzero(_IS_SIGN[signs])
        kinds = signs[at]
        quotes = (kinds == _QUOTE) & ~_escaped(at[kinds == _BACKSLASH], end - start)[at]
        inside = (np.cumsum(quotes) + is_inside) % 2
        is_bracket = (inside == 0) & (kinds != _QUOTE) & (kinds != _BACKSLASH)
        brackets, closes = at[is_bracket], kinds[is_bracket] & _CLOSES != 0
        depths = depth + np.cumsum(np.where(closes, -1, 1), dtype=np.int32)
        levels = depths + closes
        is_known = (levels > 0) & (levels <= DEEPEST)
        yield brackets[is_known] + start, levels[is_known].astype(np.int8)
        start, depth = end, int(depths[-1]) if len(depths) else depth
        is_inside = bool(inside[-1]) if len(inside) else is_inside


def _escaped(backslashes: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which of so many bytes are escaped: every second backslash of a row escapes nothing. (size,)"""
    escaped = np.zeros(size, np.bool_)
    if len(backslashes):
        begins = np.diff(backslashes, prepend=-2) != 1
        row_starts = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        escaping = backslashes[(np.arange(len(backslashes)) - row_starts) % 2 == 0] + 1
        escaped[escaping[escaping < size]] = True
    return escaped
