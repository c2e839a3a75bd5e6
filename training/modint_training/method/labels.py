"""Which part of a sequence a token belongs to, and which labels carry no loss."""

from __future__ import annotations

from enum import IntEnum

IGNORED = -100  # label of a position that no loss reads
UNKNOWN = -101  # label where the answer of an example without one would begin: it is read, and not learnt


class Part(IntEnum):
    """What a position holds; FRAME is the template's own text, the system prompt and separators included."""

    PAD = 0
    FRAME = 1
    IMAGE = 2
    CONTEXT = 3
    ASKED = 4
    ANSWER = 5
