"""Finds what a question states within its own sentence: asides that claim something and ask nothing.

    Given that the caption says a cat, what animal is it?          a clause before the question
    The picture shows a cat, so what animal is it?                 a statement joined to it
    What animal (the caption says: a cat) is in the picture?       brackets
    What animal is it, considering that the caption says a cat?    a clause behind it or within it
    The ball is blue, isn't it?                                    a statement with a tag (`is_tagged`)

Only what has a verb that states, or names a caption or the like before a colon, is an aside. A condition ("if
Tom has 3 apples") is none: a question that rests on it cannot be asked without it. English only. Each step
looks at a bounded part of a sentence.
"""

from __future__ import annotations

import re

from modint_guard.types import Piece

_MAX_CHARACTERS = 600  # in a longer sentence nothing is looked for
_MIN_LEFT = 2  # words that must remain of the question
_VERB = (
    r"(?:is|are|was|were|isn't|aren't|shows|show|showed|says|said|reads|states|stated|mentions|contains|depicts|"
    r"displays|claims|calls|describes|tells|has|holds|indicates|reveals|features|gives|lists|it's|that's|there's|"
    r"they're|he's|she's|noted|wrote|told|thinks|believes|assumes|being|saying)"
)
_CAUSE = (
    r"(?:given(?:\s+that)?|considering(?:\s+that)?|knowing(?:\s+that)?|seeing\s+(?:that|how|as)|"
    r"assuming(?:\s+that)?|with(?=\s+(?:the|a|its)\s+(?:caption|label|note|title|text|file\s?name)\s+(?:being|saying)\b)|"
    r"if(?=\s+(?:the|its|this)\s+(?:caption|label|note|title|text|file\s?name|description)\b)|"
    r"now\s+that|granted\s+that|"
    r"since(?!\s+(?:when|\d))|because|as(?!\s+(?:is|are|was|were|in|an?\s+\w+\s*,|you\b|they\b|we\b)\b)|"
    r"although|though|even\s+though)"
)
_ASKS = (
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|would|should|has|have|name|"
    r"describe|tell|state|count|identify|say|give|choose|pick|read|determine|please)\b"
)
_STARTS_STATEMENT = (
    r"(?:the|this|that|these|those|it|it's|there|there's|here|my|our|your|an?|i|he|she|they|we|someone|somebody|"
    r"according\s+to|(?:in|on)\s+(?:the|this)\s+(?:image|picture|photo|photograph|drawing|figure|scene))\b"
)
_JOINT = r"(?:\s*[,;:]\s*(?:(?:so|and|but|then|now|yet)\s+)?|\s+[-–—]+\s+|\s+(?:so|but)\s+)"
_NO_CLAUSE = r"(?:(?!\b(?:who|which|that|whose)\s+(?:is|are|was|were|has)\b)[^,;?!\n])"
_BEFORE = re.compile(
    rf"\s*(?P<aside>{_CAUSE}\s[^?!\n]{{0,200}}?\b{_VERB}\b[^?!\n]{{1,200}}?,)\s*(?:(?:so|then)\s+)?(?={_ASKS})",
    re.IGNORECASE,
)
_JOINED = re.compile(
    rf"\s*(?P<aside>{_STARTS_STATEMENT}{_NO_CLAUSE}{{0,160}}?\b{_VERB}\b{_NO_CLAUSE}{{1,200}}?"
    rf"(?:,\s*(?:right|yes|no|(?:is|are|was|were|does|do)n't\s+\w+))?{_JOINT})"
    rf"(?={_ASKS}[^,;]{{3,}}\?)",
    re.IGNORECASE,
)
_LABEL = (
    r"(?:caption|note|ocr|hint|title|label|file\s*name|filename|description|source|text|context|fact|alt)"
)
_IN_BRACKETS = re.compile(
    rf"(?P<aside>\((?=[^()]*(?:\b{_VERB}\b|\b{_LABEL}s?\s*[:=]))(?!\s*(?:i\.e|e\.g|as\b|if\b|what|which|who|see\b|yes\b))"
    rf"[^()/|?]{{3,200}}\))|"
    rf"(?P<dashed>(?<=\s)[–—]\s*(?=[^–—]*(?:\b{_VERB}\b|\b{_LABEL}s?\s*[:=]))[^–—?]{{3,200}}[–—](?=\s))",
    re.IGNORECASE,
)
_STRONG_JOINT = r"(?:\s*;\s*|\s*,\s*(?:so|but|yet|and\s+now|now)\b[\s,:]*|\s*:\s*)"
_STATES = rf"(?:{_VERB}|came|comes|appears|(?:was|were|been)\s+\w+ed|printed|painted|entitled|titled|named)"
_JOINED_STRONGLY = re.compile(  # by more than a comma: what follows may ask in any words, or command
    rf"\s*(?P<aside>(?!(?:{_ASKS}|if\b|when\b|while\b|unless\b|look\b|see\b|use\b|note\b|answer\b))"
    rf"{_NO_CLAUSE}{{0,160}}?\b{_STATES}\b{_NO_CLAUSE}{{1,200}}?{_STRONG_JOINT})"
    rf"(?:(?:so|and|then|now|well|tell\s+me)\b[\s,:]*)*"
    rf"(?=[^?\n]{{3,}}\?\s*[\"'”’)]*\Z|(?:please|name|describe|tell|say|state|give|read)\b[^?\n:]{{3,}}\Z)",
    re.IGNORECASE,
)
_WITHIN = re.compile(
    rf"(?P<aside>,\s+(?:{_CAUSE}\s[^,?]{{0,120}}?\b{_VERB}\b[^,?]{{1,160}}|"
    rf"according\s+to\s+(?:the|my|this|its)\s+\w+\s+\w[^,?]{{1,120}}),)(?=\s)",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    rf"(?P<aside>(?:,\s+{_CAUSE}|,?\s+(?:given|considering|knowing|seeing|now|even\s+though)(?:\s+that)?)\s"
    rf"[^?]{{0,160}}?\b{_VERB}\b[^?]{{1,200}}?)(?=\s*\?*[\"'”’)*_]*\Z)",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"(?!(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|would|should|has|have)\b)"
    r"[^?\n]{3,300},\s*(?:right|correct|no|yes|true|ok|okay|huh|eh|or\s+not|"
    r"(?:is|are|was|were|do|does|did|has|have|can|could|would)(?:n't|n’t)?\s+(?:it|they|he|she|there|you|we|this|that)"
    r"(?:\s+not)?)\s*\?+[\"'”’)*_]*\Z",
    re.IGNORECASE,
)


def asides_in(sentence: str) -> list[Piece]:
    """The characters [start, end) of a question that are asides, in order; none if too little would remain to
    ask.
    """
    if len(sentence) > _MAX_CHARACTERS:
        return []
    if not (found := [*_at_the_start(sentence), *_elsewhere(sentence)]):
        return []
    asides: list[Piece] = []
    for start, end in sorted(found):
        if not asides or start >= asides[-1][1]:
            asides.append((start, end))
    rest = "".join(" " if any(a <= i < b for a, b in asides) else c for i, c in enumerate(sentence))
    return asides if len(re.findall(r"\w+", rest)) >= _MIN_LEFT else []


def is_tagged(sentence: str) -> bool:
    """Whether a sentence states something and asks for no more than assent: "It is blue, isn't it?"."""
    return len(sentence) <= _MAX_CHARACTERS and bool(_TAG.match(sentence.lstrip("\"'“‘(*_ ")))


def _at_the_start(sentence: str) -> list[Piece]:
    match = _BEFORE.match(sentence) or _JOINED.match(sentence) or _JOINED_STRONGLY.match(sentence)
    return [_trimmed(sentence, *match.span("aside"))] if match else []


def _elsewhere(sentence: str) -> list[Piece]:
    matches = [*_IN_BRACKETS.finditer(sentence), *_WITHIN.finditer(sentence), *_BEHIND.finditer(sentence)]
    return [_trimmed(sentence, *match.span(match.lastgroup or 0)) for match in matches]


def _trimmed(sentence: str, start: int, end: int) -> Piece:
    part = sentence[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
