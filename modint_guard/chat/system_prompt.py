"""Finds the facts that a system prompt states: the parts of it that are context and not instruction.

These parts are context:
 1. what is between tags such as <context>…</context> or <facts>…</facts>;
 2. what is below a heading such as "Context:" or "Facts:", to the end of the line or, if the heading has a
    line of its own, to the next blank line or heading, except for sentences that give orders;
 3. a sentence that says what the picture shows ("The picture shows a cat.", "Image caption: a cat.") or what
    is noted of it ("The file is called cat.png.", "Note from the archive: a cat.").
Anything else may be part of the model's role, and is kept in every view.
"""

from __future__ import annotations

import re

from modint_guard.chat.question import MAX_CHARACTERS, passages_in, sentences_in
from modint_guard.types import Piece

_TAGS = "context|document|documents|facts|passage|caption|ocr|background|knowledge|description|notes|article"
_TAG = re.compile(rf"<(?P<slash>/?)(?P<name>{_TAGS})>", re.IGNORECASE)
_OF_THE_PICTURE = re.compile(
    r"(?:(?:the|this|that|each)\s+)?(?:(?:attached|given|uploaded|user's)\s+)?"
    r"(?:image|picture|photo|photograph|drawing|figure|screenshot|caption|scene)s?\s+"
    r"(?:(?:clearly|probably|always|really)\s+)?(?:shows?|depicts?|contains?|displays?|portrays?|says?|reads?|is|are|was)\b"
    r"|(?:this|that|it)\s+is\s+(?:an?|the)\s+(?:image|picture|photo|photograph|drawing)\s+of\b"
    r"|(?:in|on)\s+(?:the|this)\s+(?:image|picture|photo|scene)\s+(?:there\s+(?:is|are)|you\s+can\s+see|one\s+sees)\b",
    re.IGNORECASE,
)
_NOTED = re.compile(
    r"(?:(?:the|this|its|an?|their)\s+)?(?:\w+\s+)?(?:file|label|caption|title|note|tag|sticker|catalogue|catalog|record|entry|"
    r"name|inscription|heading|description)s?\b[^.:!?]{0,60}(?::\s*\S|\b(?:is|are|was|says|say|reads|states|names|calls|"
    r"shows|depicts)\b)"
    r"|(?:from|according\s+to|in|about|on)\s+(?:the|its|this|our|their)\s+[^.:!?]{1,60}:\s*\S"
    r"|(?:you|the\s+user|users?|we)\s+(?:are|is|have|has|will\s+be)\s+(?:looking\s+at|shown|given|uploaded|sent|attached|seeing)\b",
    re.IGNORECASE,
)
_INSTRUCTS = re.compile(
    r"(?:[^:：]{0,40}[:：]\s*)?(?:you|your|always|never|do\s+not|don't|must|please|if|when|be|answer|reply|respond|"
    r"only|use)\b",
    re.IGNORECASE,
)

_MAX_NOTE_CHARACTERS = 400
_ORDERS = re.compile(  # in a sentence about files or labels: what to do with them is no fact
    r"\b(?:must|should|always|never|do\s+not|don't|please|will\s+be\s+(?:given|shown|sent)|may|can|answer|reply|only|your)\b",
    re.I,
)


def facts_in(text: str) -> tuple[Piece, ...]:
    """The characters of a system prompt that state facts, in order and without overlap. Of a long one only
    the end is read.
    """
    if (cut := len(text) - MAX_CHARACTERS) > 0:
        return tuple((start + cut, end + cut) for start, end in facts_in(text[cut:]))
    headed = [
        (start, end)
        for start, end in passages_in(text)
        if text[start] != "<" and not _INSTRUCTS.match(text, start, end)
    ]
    described = [
        piece
        for piece in sentences_in(text)
        if _OF_THE_PICTURE.match(text, *piece) or _is_noted(text[slice(*piece)])
    ]
    return _joined(text, [*_tagged(text), *headed, *described])


def _is_noted(sentence: str) -> bool:
    is_short = len(sentence) <= _MAX_NOTE_CHARACTERS
    return is_short and bool(_NOTED.match(sentence)) and not _ORDERS.search(sentence)


def _tagged(text: str) -> list[Piece]:
    """From each opening tag to the closing tag that follows it."""
    closing: dict[str, int] = {}  # by name, the end of the next closing tag: the text is read backwards
    pieces: list[Piece] = []
    for tag in reversed(list(_TAG.finditer(text))):
        name = tag["name"].lower()
        if tag["slash"]:
            closing[name] = tag.end()
        elif name in closing:
            pieces.append((tag.start(), closing[name]))
    return pieces


def _joined(text: str, pieces: list[Piece]) -> tuple[Piece, ...]:
    """Pieces that overlap, or have only white space between them, as one."""
    joined: list[Piece] = []
    for start, end in sorted(pieces):
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
