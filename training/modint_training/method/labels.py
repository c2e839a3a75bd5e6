"""Which part of a sequence a token belongs to, and which labels carry no loss."""

from enum import IntEnum

IGNORED = -100  # the label of a position that no loss reads
# The label at which the answer of an unlabelled example would begin: compared between twins, and not learned.
UNKNOWN = -101


class Part(IntEnum):
    """What a position holds. FRAME is the chat template's own text, the system prompt and the separators."""

    PAD = 0
    FRAME = 1
    IMAGE = 2
    CONTEXT = 3
    QUESTION = 4
    ANSWER = 5
