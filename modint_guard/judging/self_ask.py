"""What the model itself says that it needs: the relevance that it was asked for, read from its reply."""

from __future__ import annotations

from modint_guard.judging.divergence import word_distribution
from modint_guard.types import Relevant, Reply

_MIN_MASS = 0.5  # that "yes" and "no" must hold together


def by_self_ask(reply: Reply, confident: float) -> Relevant:
    """What the model says to SELF_ASK: yes, the image ought to decide; no, the text. Unknown where it is less
    than `confident` of either, or says something else.
    """
    words = word_distribution(reply.top or {})
    yes, no = words.get("yes", 0.0), words.get("no", 0.0)
    if yes + no < _MIN_MASS:
        return Relevant.UNKNOWN
    if yes / (yes + no) >= confident:
        return Relevant.IMAGE
    return Relevant.TEXT if no / (yes + no) >= confident else Relevant.UNKNOWN
