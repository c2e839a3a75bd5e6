"""Which modality ought to decide the answer.

The first of these that says so decides: the request or its header; a configured rule that matches
(`relevance_rules`); lexical rules on the question; if `self_ask` is on, the model itself, which is asked for
one word (`SELF_ASK`). Otherwise the relevance is unknown.

The lexical rules are for English. They look at the question and not at the context: a caption that says "the
picture shows" does not mean that the question is about the picture.
  image    the question names the picture ("in the image", "shown", "drawn", "do you see"), or asks for what
           is written in it
  text     the question names the text ("according to the passage", "in the note"), or it is arithmetic or a
           comparison of numbers that it states itself
  image    also if it names a text where nothing but the question is text: the letter or the invoice can then
           only be in the picture
  both     it names the picture and asks for text
  image    also for weaker signs ("what colour is", "how many … are there", "what is this"), but only if there
           is no context, or if the context itself speaks of the picture, as a caption does
  unknown  otherwise; the report then states influences, but no interference
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from modint_guard.chat.relevance_rules import RelevanceRule, by_configured_rules
from modint_guard.types import Chat, ModintOptions, Relevant, RelevantSource

SELF_ASK = "Does answering need the picture?"

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
_THE = r"(?:the|this|that|these|those|your|each|every|which)"


def _rule(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)


_GIVE = r"\b(?:answer|reply|respond|pick|choose|select|give|provide|return|output|write|state|indicate)"
_KIND = (
    r"(?:(?:only|just|the|an?|one|its|given|single|correct|right|matching|corresponding|capital|full|complete|short)"
    r"\s+){0,4}"
)
_HOW_TO_ANSWER = _rule(  # "the letter" that is to be answered with is no text to be read
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\b(?:with|by|using|as)\s+{_KIND}(?:letters?|sentences?|lines?|options?)\b",
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\b(?:in|as)\s+(?:an?|one)\s+{_KIND}(?:sentences?|lines?|lists?|paragraphs?)\b",
    rf"{_GIVE}\b[^.?!\n]{{0,40}}?\bfrom\s+{_KIND}(?:lists?|options?)\b",
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
)
_NAMES_TEXT = _rule(
    rf"\baccording\s+to\s+(?:{_THE}\s+)?(?:\w+\s+)?{_WRITTEN}\b",
    rf"\b(?:in|from|by|of|on|with|using|based\s+on|given|read|reading|does|do|did)\s+{_THE}\s+(?:\w+\s+)?{_WRITTEN}\b",
    rf"\b(?:match(?:es)?|agrees?\s+with|fits?|contradicts?|supports?)\s+{_THE}\s+{_WRITTEN}\b",
    rf"\b{_THE}\s+{_WRITTEN}\s+(?:say|says|said|state|states|mention|mentions|tell|tells|above|below)\b",
    rf"\b(?:mentioned|stated|said|told|written)\s+(?:above|below|in\s+{_THE}\s+{_WRITTEN})\b",
)
_SELF_CONTAINED = _rule(
    rf"\b{_NUMBER}\s*(?:[+*/×÷]|[-−](?=\s)|plus|minus|times|divided\s+by|multiplied\s+by|modulo)\s*{_NUMBER}\b",
    rf"\b(?:plus|minus|times|divided\s+by|multiplied\s+by|add(?:ed)?(?:\s+to)?|subtract(?:ed)?(?:\s+from)?)\s+{_NUMBER}\b",
    rf"\b(?:sum|difference|product|quotient|average|mean|total)\s+(?:of|between)\s+{_NUMBER}\b",
    rf"\b{_MORE}\b.{{0,120}}?\b{_NUMBER}\b.{{0,40}}?\b{_NUMBER}\b",
    rf"\b{_NUMBER}\b.{{0,40}}?\b{_NUMBER}\b.{{0,120}}?\b{_MORE}\b",
    rf"\b(?:add|subtract|multiply|divide)\s+{_NUMBER}\b",
)
_WEAK_IMAGE = _rule(
    r"\b(?:what|which)\s+(?:colou?r|shape|kind\s+of\s+\w+)\s+(?:is|are|does|do)\b",
    r"\bcolou?r\s+of\b",
    r"\bhow\s+many\b.{0,120}\b(?:are\s+there|can\s+be\s+seen|do\s+you\s+count)\b",
    r"\b(?:what|which|who)\b[^?]{0,120}\b(?:is|are)\s+(?:this|these|that|those)\b",
    r"\b(?:is|are)\s+(?:this|that|these|those)\s+(?:an?|the)\s+\w",
    r"\b(?:wearing|holding|standing|sitting)\b",
    r"\bdescribe\s+(?:what|this|it)\b",
)
_WEAK_DOCUMENT = _rule(
    rf"\b(?:in|on|of|from|by|at|to)\s+{_THE}\s+(?:\w+\s+)?(?:receipt|invoice|bill|form|page|table|label|sign|screen|"
    r"slide|map|poster|ticket|menu|memo|certificate|graph|cheque|check|card|email|advertisement|agenda|cover)s?\b",
)


def decide(
    chat: Chat, options: ModintOptions | None = None, rules: Iterable[RelevanceRule] = ()
) -> tuple[Relevant, RelevantSource]:
    """Which modality ought to decide, and who said so: "request", "header", "route" (a configured rule),
    "rules" (the lexical ones) or "none" if it is unknown.
    """
    options = options or ModintOptions()
    if options.relevant is not None:
        return options.relevant, options.relevant_source or "request"
    configured = by_configured_rules(rules, str(chat.body.get("model") or ""), chat.question)
    if configured is not None:
        return configured, "route"
    relevant = by_lexical_rules(chat.question, chat.context)
    return relevant, "none" if relevant is Relevant.UNKNOWN else "rules"


def by_lexical_rules(question: str, context: str | None) -> Relevant:
    """Which modality ought to decide by the lexical rules alone; `context` is None if there is none."""
    if len(question) > 2 * _MAX_CHARACTERS:  # the instruction is at one of the two ends
        question = f"{question[:_MAX_CHARACTERS]} {question[-_MAX_CHARACTERS:]}"
    asked = _HOW_TO_ANSWER.sub("", question)
    stripped, read_from_picture = _READ_FROM_PICTURE.subn("", asked)
    names_text = bool(_NAMES_TEXT.search(stripped))
    image = bool(read_from_picture or _IMAGE.search(stripped)) or (context is None and names_text)
    text = bool(_SELF_CONTAINED.search(stripped)) or (context is not None and names_text)
    if image or text:
        return Relevant.BOTH if image and text else Relevant.IMAGE if image else Relevant.TEXT
    if context is None and _WEAK_DOCUMENT.search(asked):
        return Relevant.IMAGE
    alone = context is None or bool(re.search(rf"\b{_PICTURE}\b", context, re.IGNORECASE))
    return Relevant.IMAGE if alone and _WEAK_IMAGE.search(asked) else Relevant.UNKNOWN
