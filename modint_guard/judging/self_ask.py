"""Reads what the model itself says about which modality its answer needs."""

from __future__ import annotations

from modint_guard.judging.divergence import word_distribution
from modint_guard.types import Relevant, Reply

_MIN_MASS = 0.5  # the least probability that "yes" and "no" must have together


def by_self_ask(reply: Reply, confident: float) -> Relevant:
    """The relevant modality by the reply to `SELF_ASK`: the image for "yes", the text for "no".

    confident: the share of "yes" or "no" among the two, in (0.5, 1], from which it counts; below it, or if
    the reply is something else, the relevance is unknown.
    """
    words = word_distribution(reply.top or {})
    yes, no = words.get("yes", 0.0), words.get("no", 0.0)
    if yes + no < _MIN_MASS:
        return Relevant.UNKNOWN
    if yes / (yes + no) >= confident:
        return Relevant.IMAGE
    return Relevant.TEXT if no / (yes + no) >= confident else Relevant.UNKNOWN
