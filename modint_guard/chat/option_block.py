"""Finds the options of a question: lettered, numbered or bulleted blocks, and options within a sentence.

    A. red        (A) red (B) blue      Option A: red       - red          Answer with one of: red, blue.
    B. blue       [A] red [B] blue      A、红 B、蓝          - blue         Is it red? (yes/no)
    а) красный    A: red B: blue        ① 赤 ② 青

The labels of a block count up from A, a, 1, ①, a full-width A or a Cyrillic а, all in one style. Bullets are
options only below a question or a heading that announces options. Texts may be long and hostile: every step
takes time linear in the text, or looks at a bounded part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from modint_guard.types import Option, Piece


@dataclass(frozen=True, slots=True)
class OptionBlock:
    """An option block in a text.

    start, end: its characters [start, end), a header such as "Options:" included. texts: the characters of
    each option's text.
    """

    start: int
    end: int
    options: tuple[Option, ...]
    texts: tuple[Piece, ...]


BULLETS = " \t-*•‣·"
_MAX_LABELS = 400  # in a text; the last ones are looked at
_MAX_OPTIONS = 60
_MAX_OPTION_CHARACTERS = 2000
_MAX_INLINE_WORDS = 5  # in one option within a sentence
_LOOK_BACK = 80  # characters before a label that can matter
_FIRST_LABELS = ("A", "a", "1", "Ａ", "①", "а", "А")
_LABEL = re.compile(
    r"(?:(?<![^\s？。，、；：])|(?=[（【]))(?:(?i:option|choice)[ \t]+)?(?P<open>[(\[（【]?)(?P<bold>\*{0,2})"
    r"(?P<label>[A-Za-zＡ-Ｚа-еА-Е]|\d{1,2}|(?P<circled>[①-⑳]))"
    r"(?P<close>(?(circled)|(?:\*{0,2}[.):\]）】．、：]\*{0,2}|[ \t]+[-–—](?=[ \t]))))"
    r"(?=[ \t\u3000]+\S|(?<=[)）】．、：①-⑳])\S|(?<=[A-Z]\.)\S)"
)
HEADINGS = (  # of options, in other languages than English
    r"(?:opciones|optionen|opções|opzioni|opties|alternativas|seçenekler|варианты|варіанти|विकल्प|الخيارات|선택지|보기|"
    r"选项|選項|选择|選択肢)"
)
_HEADER_BEFORE = re.compile(
    rf"(?:(?:answer\s+)?(?:options|choices|candidates)(?:\s+are)?|{HEADINGS})\s*[:：]\s*\Z",
    re.IGNORECASE,
)
_BULLET_LINE = re.compile(r"[ \t]*[-*•‣·][ \t]+(?P<text>\S[^\n]{0,200})(?:\n|\Z)")
_INLINE = re.compile(
    rf"(?:\b(?:options|choices|candidates)(?:\s+are)?|{HEADINGS}|"
    r"\b(?:answer|reply|respond|choose|select|pick)\b[^:\n]{0,40}"
    r"\b(?:words?|one(?:\s+of)?|from|among|between|options?|choices?)\b[^:\n]{0,40})"
    r"[:：][ \t]*(?P<list>[^:：.?!。\n]{3,300})",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"[(\[](?P<list>[^()\[\]\n/|]{1,60}(?:[/|][^()\[\]\n/|]{1,60}){1,11})[)\]]")
_YES_OR_NO = re.compile(
    r"\b(?:answer|reply|respond)\b[^.\n]{0,40}\b(?P<list>yes\s+or\s+no|true\s+or\s+false)\b", re.I
)
_SEPARATOR = re.compile(r"\s*(?:[,;/|、，،]\s*(?:or\s+|and\s+)?|\s(?:or|and)\s)\s*", re.IGNORECASE)


def option_block(text: str, asks: Callable[[str], bool]) -> OptionBlock | None:
    """The last run of at least two options whose labels count up from the first, else the last list of
    bullets that are options; None if there is neither.

    asks: whether a line is a question or a command, so that bullets below it are options.
    """
    labels = [match for match in _LABEL.finditer(text) if not _is_abbreviation(text, match)][-_MAX_LABELS:]
    for first in reversed(range(len(labels))):
        if (
            labels[first]["label"] in _FIRST_LABELS
            and len(run := _run(text, labels[first : first + _MAX_OPTIONS])) >= 2
        ):
            return _labelled(text, run)
    return _bulleted(text, asks)


def inline_options(text: str) -> tuple[Option, ...]:
    """Options that a sentence lists ("one of: red, blue", "(yes/no)"); each is its own label. Empty if there
    are none, or if one of them is longer than a few words.
    """
    for pattern in (_INLINE, _IN_BRACKETS, _YES_OR_NO):
        for match in reversed([*pattern.finditer(text)][-_MAX_OPTIONS:]):
            words = [word.strip(" \t.\"'“”") for word in _SEPARATOR.split(match["list"].strip())]
            if len(words) >= 2 and all(word and len(word.split()) <= _MAX_INLINE_WORDS for word in words):
                return tuple(Option(word, word) for word in dict.fromkeys(words))
    return ()


def is_choice_list(text: str) -> bool:
    """Whether a text is nothing but options in brackets, such as "(yes/no)"."""
    return bool(_IN_BRACKETS.fullmatch(text.strip()))


def starts_line(text: str, position: int) -> bool:
    """Whether there are only bullets and white space before this position on its line."""
    before = text[max(0, position - _LOOK_BACK) : position].rstrip(BULLETS)
    return before.endswith("\n") or (not before and position <= _LOOK_BACK)


def _is_abbreviation(text: str, match: re.Match[str]) -> bool:
    """Whether it is an abbreviation such as "U.S.": a full stop with no white space after it ends a label at
    the start of a line only.
    """
    glued = match["close"].endswith(".") and not text[match.end() : match.end() + 1].isspace()
    return glued and not starts_line(text, match.start())


def _labelled(text: str, run: list[re.Match[str]]) -> OptionBlock:
    end = _block_end(text, run)
    stops = [*(match.start() for match in run[1:]), end]
    texts = tuple(_option_text(text, match.end(), stop) for match, stop in zip(run, stops, strict=True))
    options = tuple(Option(m["label"], text[a:b]) for m, (a, b) in zip(run, texts, strict=True))
    return OptionBlock(_block_start(text, run[0].start()), end, options, texts)


def _option_text(text: str, start: int, stop: int) -> Piece:
    """The text of one option, without the bullet of the next one and without closing punctuation."""
    raw = re.sub(r"\n[ \t]*[-*•‣·][ \t]*\Z", "", text[start:stop])
    trimmed = raw.rstrip().rstrip(".,;。，；").rstrip()
    return start + len(trimmed) - len(trimmed.lstrip()), start + len(trimmed)


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
    return str(int(label) + 1) if label.isdecimal() else chr(ord(label) + 1)


def _may_follow(text: str, last: re.Match[str], match: re.Match[str]) -> bool:
    if match.start() - last.end() > _MAX_OPTION_CHARACTERS:
        return False
    between = text[last.end() : match.start()].rstrip()
    if re.search(r"\n[ \t]*\n", between):  # a new paragraph
        return False
    if starts_line(text, match.start()):
        return True
    close = match["close"].strip("*")
    is_label = close in ")]）】、．" or (match["label"].isupper() and close in ".:：")
    return is_label and "\n" not in between


def _block_start(text: str, start: int) -> int:
    if starts_line(text, start):  # a bullet before the label
        start -= len(text[:start]) - len(text[:start].rstrip(BULLETS))
    header = _HEADER_BEFORE.search(text, max(0, start - _LOOK_BACK), start)
    return header.start() if header else start


def _block_end(text: str, run: list[re.Match[str]]) -> int:
    """The end of the last option: that of its line or, if the options share a line, that of its sentence."""
    start = run[-1].end()
    line_end = text.find("\n", start)
    end = len(text) if line_end < 0 else line_end
    if not starts_line(text, run[-1].start()) and (
        stop := re.search(r"[.!?;](?=\s)|[。！？；]", text[start:end])
    ):
        end = start + stop.end()
    return start + len(text[start:end].rstrip())


def _bulleted(text: str, asks: Callable[[str], bool]) -> OptionBlock | None:
    """The last list of at least two bullets directly below a question or a heading that announces options."""
    runs: list[list[re.Match[str]]] = []
    at = 0
    while at < len(text):
        match = _BULLET_LINE.match(text, at)
        if match is not None and runs and runs[-1] and runs[-1][-1].end() == at:
            runs[-1].append(match)
        elif match is not None:
            runs.append([match])
        line_end = text.find("\n", at)
        at = match.end() if match else (len(text) if line_end < 0 else line_end + 1)
    for run in reversed(runs):
        before = text[max(0, run[0].start() - _MAX_OPTION_CHARACTERS) : run[0].start()].rstrip()
        announced = _HEADER_BEFORE.search(before) or asks(before[before.rfind("\n") + 1 :])
        if 2 <= len(run) <= _MAX_OPTIONS and announced:
            texts = tuple(_option_text(text, match.start("text"), match.end("text")) for match in run)
            options = tuple(Option(text[a:b], text[a:b]) for a, b in texts)
            end = run[-1].start() + len(run[-1].group().rstrip())
            return OptionBlock(_block_start(text, run[0].start("text")), end, options, texts)
    return None
