"""Where the tokens of an answer stand in its text.

A character may be spread over several tokens. Engines tell its bytes, token by token (`bytes` of OpenAI's
log-probabilities), or nothing until the token that completes it, as vLLM does; both are read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from modint_guard.types import Piece, Position


def bytes_of(position: Position) -> bytes:
    """The bytes of a token, as the engine reports them, or else those of its text."""
    return position.token.encode(errors="replace") if position.raw is None else position.raw


def places_of(positions: Sequence[Position], text: str) -> list[Piece] | None:
    """The characters [start, end) of the text that each token has a part in; start = end for a token without
    any. White space around the text may differ; otherwise None if the tokens do not hold the text.
    """
    pieces = [bytes_of(position) for position in positions]
    inner = text.strip()
    first = b"".join(pieces).find(inner.encode(errors="replace"))
    if first < 0:
        return None
    indent = len(text) - len(text.lstrip())
    begins = [*accumulate((len(sign.encode(errors="replace")) for sign in inner), initial=0)]  # in bytes
    places: list[Piece] = []
    for end, piece in zip(accumulate(map(len, pieces)), pieces, strict=True):
        a, b = end - len(piece) - first, end - first
        start = min(max(bisect_right(begins, a) - 1, 0), len(inner))
        stop = max(start, min(bisect_left(begins, b), len(inner)))
        places.append((indent + start, indent + stop))
    return places


def holding(pieces: Sequence[Piece], place: Piece) -> int | None:
    """The index of the first piece that a token at this place has a part in; None if it has none.

    pieces: in order, without overlaps. A token without characters belongs to the character that comes next.
    """
    start, end = place
    index = bisect_right(pieces, start, key=lambda piece: piece[1])
    return index if index < len(pieces) and pieces[index][0] < max(end, start + 1) else None
