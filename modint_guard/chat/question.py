"""Splits a text into a question (with its options) and context.

The question is the last instruction: everything that tells the model what to do, option block included. The
rest is context: captions, passages, OCR, claims. The rules, in this order:
 1. An option block (`option_block`) belongs to the question.
 2. Below the last heading "Question:", everything up to the last sentence that asks is the question.
 3. Otherwise the question is the sentence before the options, or the last sentence with a question mark, or
    the last imperative ("Name the colour."), or an unfinished last line ("The colour is"). If there is none,
    there is no question to be found. Sentences in quotation marks or below a heading such as "Passage:" count
    only if no other sentence asks.
 4. "Look at the picture.", "Answer with one word.", "Just the number.", "Thanks!" and "Answer:" belong to the
    question.
 5. What the question states within its own sentence is context (`asides`), and so is a statement with a tag
    ("It is blue, isn't it?") if another sentence asks.
Sentence ends are known for English, Spanish, Greek, Arabic, Hindi, Chinese and Japanese; imperatives and
headings for English, the commonest of them also for some other languages.
If no question is found, the whole text is the question and there is no context.
Texts may be long and hostile: every step takes time linear in the text, or looks at a bounded part of it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from modint_guard.chat.asides import asides_in, is_tagged
from modint_guard.chat.option_block import HEADINGS, OptionBlock, inline_options, is_choice_list, option_block
from modint_guard.types import Option, Piece


@dataclass(frozen=True, slots=True)
class TextSplit:
    """Which characters of a text are question and which are context, both in order, and the options found.

    option_texts: the characters of each option's text if the options form a block, otherwise empty. block:
    the characters of that block.
    """

    question: tuple[Piece, ...]
    context: tuple[Piece, ...]
    options: tuple[Option, ...]
    option_texts: tuple[Piece, ...] = ()
    block: Piece | None = None


MAX_CHARACTERS = 100_000  # of a text that are split, from its end; what stands before them is context
_MAX_INSTRUCTION_CHARACTERS = 300
_MAX_QUOTE_CHARACTERS = 2000
_LOOK_BACK = 80  # characters before a full stop that can matter
_CLOSING = "\"'”’)]»」』）】》*_"
_ASKING = "?？؟፧\u037e⁇⁈⁉"
_SENTENCE_END = re.compile(
    r"(?:[.!?…][\"'”’)\]»*]*\s+(?=[\"'“‘„«(\[¿¡*]?[^\Wa-z_]|[\"'“‘„«(\[¿¡])|\?\s+(?=[a-z]|[-–—]\s)"
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
_IMPERATIVE = re.compile(
    r"(?:please[\s,]+)?(?:name|describe|tell|state|count|list|identify|explain|say|give|choose|select|pick|find|compute|"
    r"calculate|determine|read|write|summari[sz]e|translate|classify|transcribe|estimate|guess|complete|fill|show|add|"
    r"subtract|solve|report|provide|compare|decide|answer|extract|look|output|return|respond|reply|check|convert|round|"
    r"mention|include|ignore|make\s+sure|transliterate|quote)\b(?!\s*:)",
    re.IGNORECASE,
)
_IMAGE_NOUN = (
    r"(?:image|picture|photo|photograph|drawing|figure|diagram|chart|screenshot|illustration|scene)s?"
)
_LOOK = re.compile(
    rf"(?:please\s+)?(?:look(?:ing)?\s+at|consider|examine|study|inspect|see|use|refer\s+to|view|based\s+on)\s+"
    rf"(?:only\s+)?(?:the|this|these|that|each|both)\s+(?:\w+\s+)?{_IMAGE_NOUN}\b[^:]*[.!:,]?\Z",
    re.IGNORECASE,
)
_ANSWER_HOW = re.compile(
    r"(?:please[\s,]+)?(?:answer|reply|respond|choose|select|pick|give|provide|return|output|write|state|use|be|"
    r"do\s+not|don't|only|think|explain)\b(?=[^:]*\b(?:words?|letters?|numbers?|digits?|sentences?|options?|choices?|"
    r"one\s+of|yes\s+or\s+no|only|briefly|short|single|concise|json|format|step\s+by\s+step|following|question)\b)"
    r"[^:]*[.!:]?\Z",
    re.IGNORECASE,
)
_ANSWER_AMONG = re.compile(
    rf"(?:(?:answer\s+)?(?:options|choices|candidates)(?:\s+are)?\s*:|{HEADINGS}\s*[:：]|"
    r"(?:please[\s,]+)?(?:answer|reply|respond|choose|select|pick)\b[^:]*\b(?:words?|letters?|numbers?|one(?:\s+of)?|from|"
    r"among|between|options?|choices?)\b[^:]*:)",
    re.IGNORECASE,
)
_ANSWER_HOW_ELSEWHERE = re.compile(
    r"(?:por\s+favor[\s,]+)?(?:responde|responda|contesta|conteste|elige|elija|escoge|escolha)\b|"
    r"(?:réponds|répondez|choisis|choisissez|rispondi|scegli|(?:bitte\s+)?(?:antworte|antworten|wähle|wählen))\b|"
    r"(?:ответь|ответьте|выбери|выберите)\b|(?:أجب|اختر)\b|"
    r"(?:请[^。]{0,20}|只?(?:用|从|以)[^。]{0,15})(?:回答|作答|选择)|[^。]{0,20}(?:答えて|選んで)(?:ください|下さい)",
    re.IGNORECASE,
)
_NOUNS_OF_AN_ANSWER = (
    r"(?:names?|numbers?|letters?|words?|answers?|colou?rs?|dates?|totals?|values?|amounts?|sums?|digits?|options?|labels?|"
    r"codes?|titles?|years?|facts?|results?|figures?|sentences?|lines?|lists?|yes\s+or\s+no|basics|essentials|json|markdown|"
    r"text|nouns?|verbs?|adjectives?|count|city|country|time|price|unit)"
)
_ASIDE_FROM_THE_TASK = re.compile(  # what a person says around a question, and how short the answer should be
    r"(?:(?:and|so|then|ok(?:ay)?|please|but|also)[\s,]+)*(?:"
    rf"(?:just|only|simply|merely)\s+(?:(?:give|tell|write|say|return)\s+(?:me\s+)?)?(?:\w+\s+){{0,3}}?{_NOUNS_OF_AN_ANSWER}"
    rf"|(?:the\s+)?(?:\w+\s+)?{_NOUNS_OF_AN_ANSWER}\s+(?:only|alone|will\s+do|is\s+enough|suffices?)"
    r"|(?:keep|make)\s+(?:it|this|that|(?:the|your)\s+(?:answer|reply|response))\s+[^.?!:]{1,60}"
    r"|(?:be|stay)\s+(?:\w+\s+)?(?:brief|short|concise|precise|exact|quick|specific|honest|terse|succinct|polite|careful)\b"
    r"[^.?!]{0,80}"
    r"|(?:yes\s*(?:or|/)\s*no|true\s*(?:or|/)\s*false)(?:\s+only)?"
    r"|(?:(?:many|no)\s+)?(?:thanks|thank\s+you|thx|cheers)\b[^.?!:]{0,60}"
    r"|(?:no|without|don't\s+\w+|do\s+not\s+\w+|skip|avoid|never\s+mind)\s+(?:\w+\s+){0,3}?(?:explanations?|explaining|markdown|"
    r"fences?|comments?|commentary|preamble|punctuation|reasoning|units?|text|sentences?|extras?|formatting|prose|caveats?|"
    r"details?|essays?|words?|steps?|introduction|fluff)\b[^.?!:]{0,60}"
    r"|(?:(?:in|with|as|at\s+most|up\s+to|max(?:imum)?)\s+)?(?:an?|one|two|three|four|five|ten|few|single|\d{1,3})\s+(?:\w+\s+)?"
    r"(?:(?:or|to)\s+\w+\s+)?(?:words?|letters?|sentences?|numbers?|lines?|digits?|bullets?)\b[^.?!:]{0,30}"
    r"|(?:short|brief|one-word|quick|concise)\s+(?:answer|reply|response)s?\b[^.?!:]{0,30}"
    r"|(?:in|as)\s+(?:english|german|french|spanish|italian|portuguese|chinese|japanese|plain\s+\w+|json|csv|yaml|html|"
    r"lower\s*case|upper\s*case|capitals)\b[^.?!:]{0,30}"
    r"|(?:hi|hello|hey|good\s+(?:morning|afternoon|evening|day)|dear)\b[^.?!:]{0,40}"
    r"|(?:i|we)(?:'m|'d|\s+am|\s+would)?\s+(?:need|want|like|trying|working|looking|writing|preparing|have\s+to|am\s+in|can't|"
    r"cannot|in\s+a\s+hurry|curious|colou?r-?blind|just\s+curious)\b[^.?!:]{0,120}"
    r"|i(?:'m|\s+am)\s+(?:blind|deaf|dyslexic|new\s+here|a\s+\w+)"
    r"|if\s+you(?:'re|\s+are|\s+do|\s+can)?\s*(?:not|n't|unsure|don't|can't|cannot)\b[^.?!:]{0,80}"
    r"|(?:\w+\s+)?(?:format|language|style|length|units?)\s*:\s*[^.?!]{1,60}"
    r"|you\s+are\s+(?:an?|the|my)\s+[^.?!:]{1,120}"
    rf"|here(?:'s|\s+is|\s+are|\s+comes)\s+(?:\w+\s+){{0,3}}{_IMAGE_NOUN}(?:\s+(?:i|we|from|for|that\s+i)\b[^.?!:]{{0,60}})?"
    r"|(?:nur|bitte\s+nur|solo|sólo|seulement|uniquement|juste|soltanto|apenas|somente)(?:\s+\w+){1,4}"
    r"|(?:danke|merci|gracias|grazie|obrigad[oa]|спасибо|谢谢|ありがとう)\b[^.?!:]{0,40}"
    r")(?:[\s,]*(?:please|thanks|thank\s+you|bitte|por\s+favor|s'il\s+vous\s+plaît))?\s*[.!:]*\Z",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(
    r"(?:[:：=_…-]|\b(?:is|are|was|were|be|the|an?|of|in|on|at|by|to|with|from|called|named|reads|says|shows))\s*\Z",
    re.I,
)
_LABELLED = re.compile(r"[#*_>\s]{0,6}[^\W\d_][\w'’/ .-]{0,40}[:：]\s*\S[^\n]*\Z")
_MARKS = r"[#*_>\[<(\s]{0,8}"  # of Markdown or a tag, before a heading
_COLON = r"[*_\]>)\s]{0,8}(?:[:：]|(?<=[\]>]))[*_]{0,4}(?:(?=\s|\Z)|(?<=[：\]>]))"
_QUESTION_WORDS = (
    r"(?:question|q|task|instruction|instructions|query|pregunta|frage|domanda|pergunta|вопрос|سؤال|السؤال|问题|"
    r"問題|質問|प्रश्न)"
)
_CONTEXT_WORDS = (
    r"(?:(?:\w{1,20}\s{1,4})?(?:context|passage|caption|facts?|document|background|article|paragraph|notes?|ocr|text|"
    r"description|knowledge|references?|evidence|story|information|hints?|excerpt|transcript(?:ion)?|file\s?names?|titles?|"
    r"alt|tags?|keywords?|metadata|labels?|subject|headline)(?:\s{1,4}text)?(?:\s{1,4}\d{1,4})?|"
    r"contexto|pasaje|texto|kontext|contexte|texte|контекст|текст|السياق|النص|上下文|背景|说明|文本|文脈|本文)"
)
_QUESTION_HEADER = re.compile(rf"{_MARKS}{_QUESTION_WORDS}(?:\s{{1,4}}\d{{1,4}})?{_COLON}", re.IGNORECASE)
_CONTEXT_HEADER = re.compile(rf"{_MARKS}{_CONTEXT_WORDS}{_COLON}", re.IGNORECASE)
_ANSWER_HEADER = re.compile(
    rf"{_MARKS}(?:(?:your\s+|the\s+)?(?:final\s+)?answer|a|response|reply|respuesta|antwort|réponse|risposta|resposta|"
    rf"ответ|الإجابة|الجواب|答案|回答|答え){_COLON}\Z",
    re.IGNORECASE,
)
_QUOTES = re.compile(
    "|".join(
        f"{opening}[^{opening}{closing}]{{1,{_MAX_QUOTE_CHARACTERS}}}{closing}"
        for opening, closing in ("“”", "«»", "「」", "『』", "„“", "《》")
    )
    + f'|"[^"\n]{{1,{_MAX_QUOTE_CHARACTERS}}}"'
)
_CLOSING_TAG = re.compile(r"</\w{1,20}>\Z")
_LATIN = re.compile(r"[A-Za-z]{3}")
_GREEK = re.compile(r"[\u0370-\u03ff]")


def split_text(text: str) -> TextSplit:
    """Question, context and options of one string. If no question is found, all of it is the question."""
    if len(text) > MAX_CHARACTERS:
        return _split_end(text, len(text) - MAX_CHARACTERS)
    block = options_in(text)
    units = _units(text, block)
    asking = _asking_unit(text, units, block)
    if asking is None:
        whole = _trimmed(text, 0, len(text))
        return _text_split(text, (whole,) if whole else (), (), block)
    chain = range(_first_of_chain(text, units, asking), asking + 1)
    passages, quotes = _passages(text, units), _quotes(text)
    pieces: list[tuple[Piece, bool]] = []  # and whether each belongs to the question
    for index, unit in enumerate(units):
        if index in chain:
            pieces.extend(_without_asides(text, unit))
            continue
        is_quoted = index in passages or _is_quoted(text, unit, quotes)
        sentence = text[slice(*unit)]
        asks_too = _commands(sentence) or (index > asking and _asks_openly(sentence))
        pieces.append(
            (unit, (asks_too and not is_quoted) or _belongs_to_question(text, units, index, asking, block))
        )
    question, context = (_merged(pieces, wanted=wanted) for wanted in (True, False))
    return _text_split(text, question, context, block)


def _split_end(text: str, cut: int) -> TextSplit:
    """The split of a long text: what stands before `cut`, or before the line there, is context."""
    cut = max(cut, text.find("\n", cut) + 1)
    split = split_text(text[cut:])
    question, context, option_texts = (
        tuple((start + cut, end + cut) for start, end in pieces)
        for pieces in (split.question, split.context, split.option_texts)
    )
    before = _trimmed(text, 0, cut)
    block = (split.block[0] + cut, split.block[1] + cut) if split.block else None
    return TextSplit(question, ((before,) if before else ()) + context, split.options, option_texts, block)


def _end(text: str) -> str:
    """As much of a text as is looked at, from its end."""
    return text[-MAX_CHARACTERS:]


def asks(text: str) -> bool:
    """Whether a text asks something: it holds options, or a question or command that is neither quoted nor
    below the heading of a passage.
    """
    text = _end(text)
    block = options_in(text)
    units = _units(text, block)
    passages, quotes = _passages(text, units), _quotes(text)
    return block is not None or any(
        _asks(text[slice(*unit)]) or _commands(text[slice(*unit)])
        for index, unit in enumerate(units)
        if index not in passages and not _is_quoted(text, unit, quotes)
    )


def is_latin(text: str) -> bool:
    """Whether a text is in Latin letters: a sentence without a question mark is then a statement."""
    return bool(_LATIN.search(text))


def is_labelled(text: str) -> bool:
    """Whether a text is a value behind its label ("File name: cat.png", "OCR: Koala") and does not ask."""
    headed = _QUESTION_HEADER.match(text) or _ANSWER_HEADER.match(text) or _is_instruction(text)
    return bool(_LABELLED.match(text)) and not headed


def is_left_open(text: str) -> bool:
    """Whether a text is unfinished, for the model to complete: "The colour is", "Answer:"."""
    return bool(_UNFINISHED.search(text.rstrip()))


def says_how(text: str) -> bool:
    """Whether a text says nothing but how to answer: "Answer with one word.", "Answer:"."""
    if len(text) > MAX_CHARACTERS:
        return False
    units = [text[a:b] for a, b in _units(text, None)]
    return bool(units) and all(_is_instruction(unit) or _ANSWER_HEADER.match(unit) for unit in units)


def orders(text: str) -> bool:
    """Whether a text does nothing but tell the model what to do: "Translate it. Be brief."."""
    if len(text) > MAX_CHARACTERS:
        return False
    units = [text[a:b] for a, b in _units(text, None)]
    return bool(units) and all(
        _commands(unit) or _is_instruction(unit) or _ANSWER_HEADER.match(unit) for unit in units
    )


def states(text: str) -> bool:
    """Whether a text is known to make statements only: sentences that end in a full stop or passages below a
    heading, with no question and no command among them. Never so for text without Latin letters.
    """
    text = _end(text)
    units = _units(text, None)
    passages, quotes = _passages(text, units), _quotes(text)
    return (
        is_latin(text)
        and options_in(text) is None
        and all(
            index in passages or _is_quoted(text, unit, quotes) or _states(text[slice(*unit)])
            for index, unit in enumerate(units)
        )
    )


def options_in(question: str) -> OptionBlock | None:
    """The block of options that a question lists, whatever its style; None if it lists none."""
    if len(question) > MAX_CHARACTERS:
        return None
    return option_block(question, _announces)


def sentences_in(text: str) -> list[Piece]:
    """The sentences and lines of a text, in order."""
    return _sentences(text, 0, len(text))


def passages_in(text: str) -> list[Piece]:
    """The sentences below a heading such as "Context:", the heading included, in order."""
    units = sentences_in(text)
    inside = _passages(text, units)
    return [unit for index, unit in enumerate(units) if index in inside]


def _text_split(
    text: str, question: tuple[Piece, ...], context: tuple[Piece, ...], block: OptionBlock | None
) -> TextSplit:
    if block is not None:
        return TextSplit(question, context, block.options, block.texts, (block.start, block.end))
    return TextSplit(question, context, inline_options("\n".join(text[a:b] for a, b in question)))


def _units(text: str, block: OptionBlock | None) -> list[Piece]:
    """The sentences and lines of a text, in order. An option block is one unit."""
    if block is None:
        return _sentences(text, 0, len(text))
    return [
        *_sentences(text, 0, block.start),
        (block.start, block.end),
        *_sentences(text, block.end, len(text)),
    ]


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


def _asking_unit(text: str, units: list[Piece], block: OptionBlock | None) -> int | None:
    """The index of the unit that asks, or None if none can be told from the others."""
    texts = [text[a:b] for a, b in units]
    options_at = next((i for i, (start, _) in enumerate(units) if block and start == block.start), None)
    headed = _under_last_heading(texts)
    before = None if headed or options_at is None else _before_options(text, texts, units, options_at)
    if before is not None:
        return before
    everywhere = [i for i in (range(len(units)) if headed is None else headed) if i != options_at]
    passages, quotes = _passages(text, units), _quotes(text)
    unquoted = [i for i in everywhere if i not in passages and not _is_quoted(text, units[i], quotes)]
    for candidates in (unquoted, everywhere):
        if (asking := _last_that_asks(texts, candidates, everywhere)) is not None:
            return asking
    if headed is not None:
        return everywhere[-1] if everywhere else None
    if options_at is None and passages and unquoted:  # "One sentence about the picture, please." and a title
        return unquoted[-1]
    return None if options_at is None else max(options_at - 1, 0)


def _before_options(text: str, texts: list[str], units: list[Piece], options_at: int) -> int | None:
    """The unit before the options that they answer; None if it cannot be told. What lies further back behind
    "Pick the option that fits." is the question only if it asks or is left open.
    """
    before = options_at - 1
    while before > 0 and _is_instruction(texts[before]) and not _asks(texts[before]):
        before -= 1
    if before < 0 or texts[before].endswith((".", "!", "。")):
        return None
    is_next = before == options_at - 1
    if is_next or _asks(texts[before]) or _commands(texts[before]):
        return before if before not in _passages(text, units) else None
    if _UNFINISHED.search(texts[before]) or not is_latin(texts[before]):
        return before
    return options_at - 1


def _last_that_asks(texts: list[str], candidates: list[int], everywhere: list[int]) -> int | None:
    """The last unit with a question mark at its end, else the last command, else an unfinished last line,
    else the last statement that asks for assent.
    """
    tests: tuple[Callable[[str], bool], ...] = (_asks_openly, _commands, _asks_without_a_mark)
    for test in tests:
        if hits := [i for i in candidates if test(texts[i])]:
            return hits[-1]
    last = everywhere[-1] if everywhere else None
    if last is not None and last in candidates and _is_open(texts[last]):
        return last
    return next((i for i in reversed(candidates) if _asks(texts[i])), None)


def _under_last_heading(texts: list[str]) -> range | None:
    """The units from the last heading "Question:" to the next heading of a passage; None without one."""
    starts = [i for i, unit in enumerate(texts) if _QUESTION_HEADER.match(unit)]
    if not starts:
        return None
    first = starts[-1]
    after = (i for i in range(first + 1, len(texts)) if _CONTEXT_HEADER.match(texts[i]))
    return range(first, next(after, len(texts)))


def _passages(text: str, units: list[Piece]) -> set[int]:
    """The units below the heading of a passage: to the end of its line or, if the heading has a line of its
    own, to the next blank line or heading.
    """
    passages: set[int] = set()
    inside, alone = False, False
    for index, (start, end) in enumerate(units):
        gap = text[units[index - 1][1] : start] if index else ""
        if gap.count("\n") > (1 if alone else 0) or _QUESTION_HEADER.match(text, start, end):
            inside = False
        if heading := _CONTEXT_HEADER.match(text, start, end):
            inside, alone = True, heading.end() == end
        if inside:
            passages.add(index)
    return passages


def _quotes(text: str) -> list[Piece]:
    """The texts between quotation marks, in order."""
    return [(match.start() + 1, match.end() - 1) for match in _QUOTES.finditer(text)]


def _is_quoted(text: str, unit: Piece, quotes: list[Piece]) -> bool:
    """Whether a unit ends inside a quotation."""
    last = unit[0] + len(text[slice(*unit)].rstrip(_CLOSING)) - 1
    before = bisect_right(quotes, (last, len(text))) - 1
    return before >= 0 and quotes[before][0] <= last < quotes[before][1]


def _asks(sentence: str) -> bool:
    end = _CLOSING_TAG.sub("", sentence).rstrip(_CLOSING).rstrip("!！").rstrip(_CLOSING)
    return end.endswith(tuple(_ASKING)) or (end.endswith(";") and bool(_GREEK.search(end)))


def _asks_openly(sentence: str) -> bool:
    return _asks(sentence) and not is_tagged(sentence)


def _asks_without_a_mark(sentence: str) -> bool:
    """Whether a sentence begins as a question does and has no end: "what is this"."""
    return bool(_QUESTION_WORD.match(sentence)) and _is_open(sentence)


def _commands(sentence: str) -> bool:
    """Whether a sentence begins with a command, behind what it states before that."""
    if _IMPERATIVE.match(sentence):
        return True
    asides = asides_in(sentence)
    rest = sentence[asides[0][1] :].lstrip() if asides and asides[0][0] == 0 else ""
    return bool(_IMPERATIVE.match(rest))


def _announces(line: str) -> bool:
    """Whether the last sentence of a line asks or commands."""
    sentences = [line[a:b] for a, b in _sentences(line, 0, len(line))]
    return bool(sentences) and (_asks(sentences[-1]) or _commands(sentences[-1]))


def _states(sentence: str) -> bool:
    is_said = sentence.rstrip(_CLOSING).endswith((".", "!")) or is_labelled(sentence)
    return is_said and not _asks(sentence) and not _commands(sentence)


def _is_open(sentence: str) -> bool:
    """Whether a line is unfinished, for the model to complete."""
    return not sentence.endswith((".", "!", "。", "！", "।", "۔", "…")) and not _asks(sentence)


def _is_instruction(sentence: str) -> bool:
    return len(sentence) <= _MAX_INSTRUCTION_CHARACTERS and any(
        pattern.match(sentence)
        for pattern in (_LOOK, _ANSWER_HOW, _ANSWER_AMONG, _ANSWER_HOW_ELSEWHERE, _ASIDE_FROM_THE_TASK)
    )


def _first_of_chain(text: str, units: list[Piece], asking: int) -> int:
    """The first unit of the question: its heading, or the first of the questions that precede the asking unit
    on the same line.
    """
    headed = _under_last_heading([text[a:b] for a, b in units])
    if headed is not None and asking in headed:
        return headed.start
    first = asking
    while first > 0 and _asks_openly(text[slice(*units[first - 1])]):
        if "\n" in text[units[first - 1][1] : units[first][0]]:
            break
        first -= 1
    return first


def _belongs_to_question(
    text: str, units: list[Piece], index: int, asking: int, block: OptionBlock | None
) -> bool:
    """Whether a unit other than the asking one belongs to the question."""
    start, end = units[index]
    if block and start == block.start:
        return True
    sentence = text[start:end]
    if index > asking and (_ANSWER_HEADER.match(sentence) or is_choice_list(sentence)):
        return True
    return _is_instruction(sentence)


def _without_asides(text: str, unit: Piece) -> list[tuple[Piece, bool]]:
    """The pieces of a unit that asks, in order, and whether each belongs to the question: asides do not."""
    pieces: list[tuple[Piece, bool]] = []
    at, (start, end) = unit[0], unit
    for a, b in [*asides_in(text[start:end]), (end - start, end - start)]:
        if between := _trimmed(text, at, start + a):
            pieces.append((between, True))
        if a < b:
            pieces.append(((start + a, start + b), False))
        at = start + b
    return pieces


def _merged(pieces: list[tuple[Piece, bool]], *, wanted: bool) -> tuple[Piece, ...]:
    """The pieces that are question (or, if not `wanted`, context), neighbouring ones as one."""
    merged: list[Piece] = []
    for index, ((start, end), is_question) in enumerate(pieces):
        if is_question is not wanted:
            continue
        if merged and index and pieces[index - 1][1] is wanted:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return tuple(merged)
