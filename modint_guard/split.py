"""Split the text of a user message into question (with its options) and context.

The question is the last instruction: everything that tells the model what to do, option block included. What
is left is context: captions, passages, OCR, claims. Rules, in this order:
 1. an option block ("A. red\\nB. blue", "(A) red (B) blue", "Options: A. red B. blue") is question;
 2. the question is the sentence before that block, else the last sentence with a question mark, else the last
    imperative ("Name the colour."), else a last line left open ("The colour is"), else it cannot be told;
 3. "Look at the picture.", "Answer with one word.", "Question:", "Answer:" go with the question.
Texts may be long and hostile: every step is linear in the text, or looks at a bounded stretch of it.
Where the question cannot be told from the rest, all of the text is question and there is no context.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modint_guard.types import Option

Piece = tuple[int, int]  # characters [start, end) of a text


@dataclass(frozen=True, slots=True)
class TextSplit:
    """Which characters of a text are question and which are context, in order, and the options found."""

    question: tuple[Piece, ...]
    context: tuple[Piece, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class OptionBlock:
    """An option block, its header ("Options:") included."""

    start: int
    end: int
    options: tuple[Option, ...]


_BULLETS = " \t-*•"
_MAX_LABELS = 400  # of a text, counted from its end
_MAX_OPTIONS = 60
_MAX_OPTION_CHARACTERS = 2000
_MAX_INSTRUCTION_CHARACTERS = 300
_LOOK_BACK = 80  # characters before a label or a full stop that can matter
_LABEL = re.compile(
    r"(?<!\S)(?P<open>[(\[]?)(?P<label>[A-Za-z]|\d{1,2})(?P<close>[.):\]])(?=[ \t]+\S|(?<=\))\S)"
)
_HEADER_BEFORE = re.compile(
    r"(?:answer\s+)?(?:options|choices|candidates)(?:\s+are)?\s*:\s*\Z", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\Wa-z_]|[\"'“‘(\[])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|fig|approx|no)|\b[a-z]\.[a-z])\.\s+\Z", re.IGNORECASE
)
_INITIAL = re.compile(r"(?<!\S)[A-Z]\.\s+\Z")
_QUESTION_WORD = re.compile(
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have)\b",
    re.IGNORECASE,
)
_CLOSING = "\"'”’)]"
_IMPERATIVE = re.compile(
    r"(?:please[\s,]+)?(?:name|describe|tell|state|count|list|identify|explain|say|give|choose|select|pick|find|compute|"
    r"calculate|determine|read|write|summari[sz]e|translate|classify|transcribe|estimate|guess|complete|fill|show|add|"
    r"subtract|solve|report|provide|compare|decide|answer)\b(?!\s*:)",
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
    r"(?:(?:answer\s+)?(?:options|choices|candidates)(?:\s+are)?\s*:|"
    r"(?:please[\s,]+)?(?:answer|reply|respond|choose|select|pick)\b[^:]*\b(?:words?|letters?|numbers?|one(?:\s+of)?|from|"
    r"among|between|options?|choices?)\b[^:]*:)",
    re.IGNORECASE,
)
_QUESTION_HEADER = re.compile(r"(?:question|q|task|instruction|query)\s*:\Z", re.IGNORECASE)
_ANSWER_HEADER = re.compile(
    r"(?:(?:your\s+|the\s+)?(?:final\s+)?answer|a|response|reply)\s*:\Z", re.IGNORECASE
)


def split_text(text: str) -> TextSplit:
    """Question, context and options of one string; without a recognisable question all of it is question."""
    block = option_block(text)
    units = _units(text, block)
    asked = _question_unit(text, units, block)
    if asked is None:
        whole = _trimmed(text, 0, len(text))
        return TextSplit((whole,) if whole else (), (), block.options if block else ())
    chain = range(_first_of_chain(text, units, asked), asked + 1)
    kept = [index in chain or _is_kept(text, units, index, asked, block) for index in range(len(units))]
    return TextSplit(
        _merged(units, kept, wanted=True), _merged(units, kept, wanted=False), block.options if block else ()
    )


def option_block(text: str) -> OptionBlock | None:
    """The last run of at least two options whose labels count up from A, a or 1."""
    labels = list(_LABEL.finditer(text))[-_MAX_LABELS:]
    for first in reversed(range(len(labels))):
        if (
            labels[first]["label"] in ("A", "a", "1")
            and len(run := _run(text, labels[first : first + _MAX_OPTIONS])) >= 2
        ):
            end = _block_end(text, run)
            starts = [*(match.start() for match in run[1:]), end]
            options = tuple(
                Option(match["label"], _option_text(text[match.end() : stop]))
                for match, stop in zip(run, starts, strict=True)
            )
            return OptionBlock(_block_start(text, run), end, options)
    return None


def _option_text(raw: str) -> str:
    """The text of one option without the next one's bullet and without closing punctuation."""
    return re.sub(r"\n[ \t]*[-*•][ \t]*\Z", "", raw).strip().rstrip(".,;").rstrip()


def _run(text: str, labels: list[re.Match[str]]) -> list[re.Match[str]]:
    """The labels that count up from the first one in the same style."""
    run = [labels[0]]
    for match in labels[1:]:
        last = run[-1]
        follows = match["label"] == _next_label(last["label"])
        same_style = (match["open"], match["close"]) == (last["open"], last["close"])
        if follows and same_style and _may_follow(text, last, match):
            run.append(match)
    return run


def _next_label(label: str) -> str:
    return str(int(label) + 1) if label.isdigit() else chr(ord(label) + 1)


def _may_follow(text: str, last: re.Match[str], match: re.Match[str]) -> bool:
    if match.start() - last.end() > _MAX_OPTION_CHARACTERS:
        return False
    between = text[last.end() : match.start()].rstrip()
    if re.search(r"\n[ \t]*\n", between):  # a new paragraph
        return False
    if _starts_line(text, match.start()):
        return True
    sure = match["close"] in ")]" or (match["label"].isupper() and match["close"] == ".")
    return sure and "\n" not in between


def _starts_line(text: str, position: int) -> bool:
    before = text[max(0, position - _LOOK_BACK) : position].rstrip(_BULLETS)
    return before.endswith("\n") or (not before and position <= _LOOK_BACK)


def _block_start(text: str, run: list[re.Match[str]]) -> int:
    start = run[0].start()
    if _starts_line(text, start):  # a bullet before the label
        start -= len(text[:start]) - len(text[:start].rstrip(_BULLETS))
    header = _HEADER_BEFORE.search(text, max(0, start - _LOOK_BACK), start)
    return header.start() if header else start


def _block_end(text: str, run: list[re.Match[str]]) -> int:
    """End of the last option: its line, or, where the options share a line, its sentence."""
    start = run[-1].end()
    line_end = text.find("\n", start)
    end = len(text) if line_end < 0 else line_end
    if not _starts_line(text, run[-1].start()) and (stop := re.search(r"[.!?;](?=\s)", text[start:end])):
        end = start + stop.end()
    return start + len(text[start:end].rstrip())


def _units(text: str, block: OptionBlock | None) -> list[Piece]:
    """Sentences and lines in order; the option block is one unit."""
    if block is None:
        return _sentences(text, 0, len(text))
    return [
        *_sentences(text, 0, block.start),
        (block.start, block.end),
        *_sentences(text, block.end, len(text)),
    ]


def _sentences(text: str, start: int, end: int) -> list[Piece]:
    found: list[Piece] = []
    for line in re.finditer(r"[^\n]+", text[start:end]):
        found.extend(_sentences_of_line(text, start + line.start(), start + line.end()))
    return found


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


def _question_unit(text: str, units: list[Piece], block: OptionBlock | None) -> int | None:
    """Index of the unit that asks, or None if none can be told from the others."""
    said = [text[a:b] for a, b in units]
    at = next((i for i, (start, _) in enumerate(units) if block and start == block.start), None)
    if at is not None:
        before = at - 1
        while before > 0 and _is_instruction(said[before]) and not _asks(said[before]):
            before -= 1
        if before >= 0 and not said[before].endswith((".", "!")):
            return before
    candidates = [i for i in range(len(units)) if i != at]
    for test in (_asks, _IMPERATIVE.match, _is_open):
        hits = [i for i in candidates if test(said[i])]
        hits = hits if test is not _is_open else [i for i in hits if i == candidates[-1]]
        if hits:
            return hits[-1]
    return None if at is None else max(at - 1, 0)


def _asks(sentence: str) -> bool:
    return sentence.rstrip(_CLOSING).endswith("?")


def _is_open(sentence: str) -> bool:
    """A line left for the model to go on with."""
    return not sentence.endswith((".", "!"))


def _is_instruction(sentence: str) -> bool:
    return len(sentence) <= _MAX_INSTRUCTION_CHARACTERS and any(
        pattern.match(sentence) for pattern in (_LOOK, _ANSWER_HOW, _ANSWER_AMONG)
    )


def _first_of_chain(text: str, units: list[Piece], asked: int) -> int:
    """Where the unbroken row of questions on the asking unit's line begins."""
    first = asked
    while first > 0 and _asks(text[slice(*units[first - 1])]):
        if "\n" in text[units[first - 1][1] : units[first][0]]:
            break
        first -= 1
    return first


def _is_kept(text: str, units: list[Piece], index: int, asked: int, block: OptionBlock | None) -> bool:
    """Whether a unit belongs to the question."""
    start, end = units[index]
    if block and start == block.start:
        return True
    sentence = text[start:end]
    if index < asked and _QUESTION_HEADER.match(sentence):
        return index == asked - 1
    if index > asked and _ANSWER_HEADER.match(sentence):
        return True
    return _is_instruction(sentence)


def _merged(units: list[Piece], kept: list[bool], *, wanted: bool) -> tuple[Piece, ...]:
    """Neighbouring units of the wanted kind as one piece each."""
    pieces: list[Piece] = []
    for index, (start, end) in enumerate(units):
        if kept[index] is not wanted:
            continue
        if pieces and index and kept[index - 1] is wanted:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
    return tuple(pieces)
