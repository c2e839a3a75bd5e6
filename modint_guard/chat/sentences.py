"""The sentences of a text, and the options that a question lists.

Sentence ends are known for English, Spanish, Greek, Arabic, Hindi, Chinese and Japanese. Texts may be long
and hostile: every step takes time linear in the text.
"""

from __future__ import annotations

import re

from modint_guard.chat.option_block import OptionBlock, option_block
from modint_guard.types import Piece

_LOOK_BACK = 80  # characters before a full stop that can matter
_CLOSING = "\"'”’)]»」』）】》*_"
_ASKING = "?？؟፧\u037e⁇⁈⁉"
_SENTENCE_END = re.compile(
    r"(?:[.!?…][\"'”’)\]»*]*\s+(?=[\"'“‘„«(\[¿¡*]?[^\Wa-z_]|[\"'“‘„«(\[¿¡])"
    r"|[。！？｡؟۔।॥።፧\u037e][\"'”’)\]»」』）】》。！？]*\s*)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|fig|approx|no)|\b[a-z]\.[a-z])\.\s+\Z", re.IGNORECASE
)
_INITIAL = re.compile(r"(?<!\S)[A-Z]\.\s+\Z")
_QUESTION_WORD = re.compile(
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have)\b",
    re.IGNORECASE,
)
_QUESTION_WORD = re.compile(
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have)\b",
    re.IGNORECASE,
)
_IMPERATIVE = re.compile(
    r"(?:please[\s,]+)?(?:name|describe|tell|state|count|list|identify|explain|say|give|choose|select|pick|find|compute|"
    r"calculate|determine|read|write|summari[sz]e|translate|classify|transcribe|estimate|guess|complete|fill|show|add|"
    r"subtract|solve|report|provide|compare|decide|answer)\b(?!\s*:)",
    re.IGNORECASE,
)
_CLOSING_TAG = re.compile(r"</\w{1,20}>\Z")
_GREEK = re.compile(r"[\u0370-\u03ff]")


def options_in(question: str) -> OptionBlock | None:
    """The block of options that a question lists, whatever its style; None if it lists none."""
    return option_block(question, _announces)


def sentences_in(text: str) -> list[Piece]:
    """The sentences and lines of a text, in order."""
    return _sentences(text, 0, len(text))


def _sentences(text: str, start: int, end: int) -> list[Piece]:
    sentences: list[Piece] = []
    for line in re.finditer(r"[^\n]+", text[start:end]):
        sentences.extend(_sentences_of_line(text, start + line.start(), start + line.end()))
    return sentences


def _sentences_of_line(text: str, start: int, end: int) -> list[Piece]:
    cuts = [start]
    for match in _SENTENCE_END.finditer(text, start, end):
        before = text[max(cuts[-1], match.end() - _LOOK_BACK) : match.end()]
        initial = _INITIAL.search(before) and not _QUESTION_WORD.match(text, match.end())
        if not _ABBREVIATION.search(before) and not initial:
            cuts.append(match.end())
    pieces = (_trimmed(text, a, b) for a, b in zip(cuts, [*cuts[1:], end], strict=True))
    return [piece for piece in pieces if piece]


def _trimmed(text: str, start: int, end: int) -> Piece | None:
    part = text[start:end]
    if not part.strip():
        return None
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _asks(sentence: str) -> bool:
    end = _CLOSING_TAG.sub("", sentence).rstrip(_CLOSING).rstrip("!！").rstrip(_CLOSING)
    return end.endswith(tuple(_ASKING)) or (end.endswith(";") and bool(_GREEK.search(end)))


def _commands(sentence: str) -> bool:
    return bool(_IMPERATIVE.match(sentence))


def _announces(line: str) -> bool:
    """Whether the last sentence of a line asks or commands."""
    sentences = [line[a:b] for a, b in _sentences(line, 0, len(line))]
    return bool(sentences) and (_asks(sentences[-1]) or _commands(sentences[-1]))
