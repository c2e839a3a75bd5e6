"""What is counted of one answer. Pure.

What is to be found is the mention of the thing that the lie claims: its first one, if the answer has one and
the answer without the caption has none. Whoever marks a word of it has found it; every other marked word is a
false one, but for the article of the mention, which is neither. Nothing is to be found in an answer that was
told the truth, or that did not follow the lie.

spans        the words of spans that are flagged as given by the text
influence    the words that the text gave: its influence is 3.3 nats or more, and more than the picture's
in context   the word is in the caption
differs      the word is not in the answer that the model gives without the caption
both         both of these

The rules leave out words without a meaning of their own and words of the question, and of JSON they read leaf
values only, as spans do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modint_guard.chat.json_leaves import leaves_in
from modint_guard.chat.words import words_in
from modint_guard.types import JSON, Piece

SPANS, INFLUENCE, IN_CONTEXT, DIFFERS, BOTH = RULES = ("spans", "influence", "in context", "differs", "both")
MOVED = 3.3  # nats: what chance moves a single token by once in a hundred times (docs/scores.md)
# Words without a meaning of their own.
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "its",
        "of",
        "on",
        "one",
        "or",
        "shows",
        "show",
        "some",
        "that",
        "the",
        "there",
        "this",
        "to",
        "with",
    ]
)


_ARTICLE = re.compile(r"\b(?:an?|the|some)\s+$", re.I)


@dataclass(frozen=True)
class Counted:
    """What one rule marked in one answer."""

    mentions: int  # 1 if there is something to be found
    found: int
    false: int


def mention_of(answer: str, clean: str, claimed: Iterable[str]) -> Piece | None:
    """Where an answer first names the claimed thing; None if it does not, or if the clean answer does too."""
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, claimed))})\b", re.I)
    first = named.search(answer)
    return None if first is None or named.search(clean) else first.span()


def counted(answer: str, clean: str, claimed: Sequence[str], marked: Iterable[Piece]) -> Counted:
    """The marks of one rule against the mention of what was claimed."""
    mention = mention_of(answer, clean, claimed)
    pieces = list(marked)
    if mention is None:
        return Counted(0, 0, len(pieces))
    start, end = mention
    article = _ARTICLE.search(answer[:start])
    begin = article.start() if article else start
    found = any(piece[0] < end and start < piece[1] for piece in pieces)
    return Counted(1, int(found), sum(piece[1] <= begin or end <= piece[0] for piece in pieces))


def marks(
    answer: str, clean: str, context: str, question: str, modint: JSON | None
) -> Mapping[str, list[Piece]]:
    """The words that each rule marks in an answer.

    clean: the answer without the caption. context: the caption. modint: the object of the answer.
    """
    pieces = _words(answer)
    known = FUNCTION_WORDS | _said(question)
    told, before = _said(re.sub(r"[_#]", " ", context)), _said(_of_leaves(clean))
    telling = [piece for piece in pieces if answer[slice(*piece)].casefold() not in known]
    in_context = [piece for piece in telling if answer[slice(*piece)].casefold() in told]
    differs = [piece for piece in telling if answer[slice(*piece)].casefold() not in before]
    return {
        SPANS: _finest(modint, lambda span: span["cause"] == "text"),
        INFLUENCE: _finest(modint, _text_gave),
        IN_CONTEXT: in_context,
        DIFFERS: differs,
        BOTH: [piece for piece in in_context if piece in differs],
    }


def _finest(modint: JSON | None, wanted: Callable[[JSON], bool]) -> list[Piece]:
    """The words that are wanted, and such leaves of which no word is listed."""
    listed = (modint or {}).get("spans") or ()
    words = [span for span in listed if span["kind"] == "word"]
    paths = {span["path"] for span in words}
    leaves = [span for span in listed if span["kind"] == "leaf" and span["path"] not in paths]
    return sorted((span["start"], span["end"]) for span in (*words, *leaves) if wanted(span))


def _text_gave(span: JSON) -> bool:
    of_text, of_image = (span["influence"][name] or 0.0 for name in ("text", "image"))
    return of_text >= MOVED and of_text > of_image


def _words(text: str) -> list[Piece]:
    leaves = leaves_in(text)
    if leaves is None:
        return words_in(text)
    inside = ((leaf.start, text[leaf.start : leaf.end]) for leaf in leaves)
    return [(start + a, start + b) for start, value in inside for a, b in words_in(value)]


def _of_leaves(text: str) -> str:
    leaves = leaves_in(text)
    return text if leaves is None else " ".join(text[leaf.start : leaf.end] for leaf in leaves)


def _said(text: str) -> frozenset[str]:
    return frozenset(text[a:b].casefold() for a, b in words_in(text))
