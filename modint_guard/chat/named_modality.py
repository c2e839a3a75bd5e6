"""What a question itself says ought to decide, in so many words (English).

image    it names the picture ("in the image", "shown", "drawn", "do you see"), or asks what is written in it
text     it names the text beside it ("according to the passage"), or nothing else is text and it is a sum
         or a comparison of numbers that it states itself
both     it names the picture and asks for text; or, beside a text, it asks of the thing shown what no picture
         shows: its price, its owner, whether it was asked for
"""

from __future__ import annotations

import re

from modint_guard.types import Relevant

_PICTURE = (
    r"(?:images?|pictures?|photos?|photographs?|drawings?|paintings?|figures?|diagrams?|charts?|plots?|screenshots?|"
    r"illustrations?|sketch(?:es)?|scenes?)"
)
_WRITTEN = (
    r"(?:texts?|passages?|notes?|sentences?|paragraphs?|stor(?:y|ies)|articles?|documents?|descriptions?|captions?|"
    r"statements?|contexts?|facts|lines?|letter|report|summary|list|table of facts)"
)
_NUMBER = (
    r"(?:-?\d+(?:\.\d+)?|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand)"
)
_MORE = (
    r"(?:larger|largest|bigger|biggest|greater|greatest|smaller|smallest|lower|lowest|higher|highest|less|least|more|"
    r"most)"
)
_MAX_CHARACTERS = 1000
_MAX_SUM_CHARACTERS = 100
_THE = r"(?:the|this|that|these|those|your|each|every|which)"


def _rule(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)


_TOGETHER = (
    rf"\b{_PICTURE}\s+and\s+(?:{_THE}\s+)?{_WRITTEN}\b|\b{_WRITTEN}\s+and\s+(?:{_THE}\s+)?{_PICTURE}\b"
)
_GIVE = r"\b(?:answer|reply|respond|pick|choose|select|give|provide|return|output|write|state|indicate)"
_KIND = (
    r"(?:(?:only|just|the|an?|one|its|given|single|correct|right|matching|corresponding|capital|full|complete|short)"
    r"\s+){0,4}"
)
_HOW_TO_ANSWER = _rule(  # "the letter" to answer with is no text to be read, "in figures" no drawing
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\b(?:with|by|using|as)\s+{_KIND}(?:letters?|sentences?|lines?|options?)\b",
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\b(?:in|as)\s+(?:an?|one)\s+{_KIND}(?:sentences?|lines?|lists?|paragraphs?)\b",
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\bfrom\s+{_KIND}(?:lists?|options?)\b",
    r"\bin\s+(?:figures|digits)\b",
    r"\b(?:only|just)\s+(?:the\s+)?(?:\w+\s+)?letters?\b",
    r"\bthe\s+letters?\s+(?:only|alone|of\s+(?:the|your))\b",
)
_READ_FROM_PICTURE = _rule(
    rf"\b(?:words?|writing|{_WRITTEN}|letters?|numbers?|digits?|sign)\s+(?:(?:that\s+)?(?:is|are|was|were)\s+)?"
    rf"(?:written\s+|shown\s+|printed\s+|visible\s+)?(?:in|on)\s+{_THE}\s+{_PICTURE}\b"
)
_IMAGE = _rule(
    rf"\b(?:{_THE}|an?|in|first|second|attached|above|below|given)\s+(?:\w+\s+)?{_PICTURE}\b",
    r"\b(?:is|are|was|were|be|being|thing|one|object|what|which)\s+(?:\w+\s+)?(?:shown|depicted|displayed|pictured|drawn|visible|"
    r"portrayed|photographed)\b",
    r"\b(?:shown|depicted|displayed|pictured|drawn|visible)\s+(?:here|above|below)\b",
    rf"\b{_THE}\s+(?:\w+\s+){{1,3}}(?:shown|depicted|displayed|pictured|drawn)\b",
    r"\b(?:can|do|did|could)\s+you\s+see\b",
    r"\byou\s+(?:can\s+)?see\b",
    r"\bcan\s+(?:\w+\s+){1,4}be\s+seen\b",
    r"\blook(?:ing)?\s+at\b",
    _TOGETHER,
)
_TEXT = r"(?:texts?|passages?|paragraphs?|stor(?:y|ies)|articles?|captions?|descriptions?|contexts?|facts)"
_NAMES_TEXT = _rule(
    rf"\baccording\s+to\s+(?:{_THE}\s+)?(?:\w+\s+)?{_TEXT}\b",
    rf"\b(?:in|from|by|using|based\s+on|given|read|reading|does|do|did)\s+{_THE}\s+{_TEXT}\b",
    rf"\b(?:match(?:es)?|agrees?\s+with|fits?|contradicts?|supports?)\s+{_THE}\s+{_TEXT}\b",
    rf"\b{_THE}\s+(?:label|{_TEXT})\s+(?:say|says|said|state|states|mention|mentions|tell|tells)\b",
    _TOGETHER,
)
_OF_THE_THING = _rule(  # the picture only says which thing is meant
    r"\b(?:thing|things|item|items|object|objects|product|article|one|person|device|piece)\s+"
    r"(?:(?:that|which)\s+)?(?:(?:is|are)\s+)?(?:in|on|shown|depicted|pictured|drawn|you\s+(?:can\s+)?see)\b",
    r"\bwhat(?:['’]s|\s+is|\s+you\s+(?:can\s+)?see|\s+the\s+picture\s+shows)\s+"
    r"(?:in|on|shown|depicted|pictured|drawn)\b[^?]*",
)
_NOT_SEEN = _rule(
    r"\b(?:costs?|price[sd]?|pay|euros?|dollars?|pounds?|worth|how\s+much)\b",
    r"\b(?:whose|owns?|owner|belongs?)\b|^\W*(?:who|which\s+person)\s+(?:has|owns?|gets?|needs?|wants?|ordered|asked)\b",
    r"\b(?:kept|stored|on\s+(?:the|my|our|your|his|her|their)\s+(?:list|note|menu|order)|among\s+the)\b",
    r"\b(?:ordered|wanted|needed|announced|required|asked\s+for|ask\s+for|asks\s+for|looking\s+for)\b",
    r"\bwhich\s+(?:room|shelf|box|drawer|aisle|bin|place)\b|^\W*where\s+(?:do|does|can|should|must|would|will)\b",
)
_POOR_PICTURE = _rule(
    r"\b(?:damaged|faded|blurred|blurry|illegible|unreadable|low[- ]resolution|bad|poor|cropped|smudged)\s+"
    rf"(?:{_PICTURE}|scans?|prints?|copy)\b",
    rf"\b(?:{_PICTURE}|scans?|prints?|cop(?:y|ies))\s+(?:is|are|has|have|was|were|came\s+out|turned\s+out)\s+"
    r"(?:\w+\s+)?(?:damaged|faded|blurred|blurry|illegible|unreadable|dark|smudged|cropped|cut\s+off|poor|bad)\b",
    r"\b(?:hardly|barely|not|scarcely)\s+(?:legible|readable|recognisable|recognizable|visible)\b",
)
_SELF_CONTAINED = _rule(
    rf"\b{_NUMBER}\s*(?:[+*×÷]|(?<=\s)/(?=\s)|[-−](?=\s)|plus|minus|times|divided\s+by|multiplied\s+by|modulo)\s*{_NUMBER}\b",
    rf"\b(?:plus|minus|times|divided\s+by|multiplied\s+by|added\s+to|subtracted\s+from)\s+{_NUMBER}\b",
    rf"\b(?:sum|difference|product|quotient|average|mean|total)\s+(?:of|between)\s+{_NUMBER}\b",
    rf"\b{_MORE}\b.{{0,120}}?\b{_NUMBER}\b.{{0,40}}?\b{_NUMBER}\b",
    rf"\b{_NUMBER}\b.{{0,40}}?\b{_NUMBER}\b.{{0,120}}?\b{_MORE}\b",
    rf"\b(?:add|subtract|multiply|divide)\s+{_NUMBER}\s+(?:to|and|from|by)\s+{_NUMBER}\b",
)


def by_wording(question: str, context: str | None) -> Relevant | None:
    """The modality that the question names, None if it names none; `context` is None if there is none."""
    if len(question) > 2 * _MAX_CHARACTERS:  # the instruction is at one of the two ends
        question = f"{question[:_MAX_CHARACTERS]} {question[-_MAX_CHARACTERS:]}"
    asked, read_from_picture = _READ_FROM_PICTURE.subn("", _HOW_TO_ANSWER.sub("", question))
    image = bool(read_from_picture or _IMAGE.search(asked))
    text = _is_sum(asked) if context is None else bool(_NAMES_TEXT.search(asked))
    if image and (text or (context is not None and _asks_beyond(asked))):
        return Relevant.BOTH
    return Relevant.IMAGE if image else Relevant.TEXT if text else None


def says_picture_is_poor(context: str | None) -> bool:
    """Whether a context says that the picture is hard to read, so that the context may be needed as well."""
    return bool(_POOR_PICTURE.search((context or "")[:_MAX_CHARACTERS]))


def _asks_beyond(question: str) -> bool:
    """Whether the picture only says which thing is meant, and what is asked of it no picture shows."""
    rest, count = _OF_THE_THING.subn(" ", question)
    return bool(count and _NOT_SEEN.search(rest))


def _is_sum(question: str) -> bool:
    first_line = question.strip().split("\n", 1)[0]
    return len(first_line) <= _MAX_SUM_CHARACTERS and bool(_SELF_CONTAINED.search(first_line))
