"""Tells context from question and instruction: a classifier of the clauses of a request.

Each unit (`units`) of the texts that users and system prompts say is given a probability of being context
(captions, passages, data, claims), question, or anything else (instructions, personas, options, greetings).
It counts character n-grams and words of the unit and of its sentence, and looks at where the unit stands. Its
weights are fitted on labelled requests in many languages (bench/relevance); no word is named here.

Texts may be long and hostile: of each, the first and last MAX_TEXT_CHARACTERS / 2 characters are read, and
what lies between them is what the unit before it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.linear import Features, Reader, collect, flag_buckets, pair_buckets
from modint_guard.chat.ngrams import HashedText, Indices, buckets, hashed, words_of
from modint_guard.chat.units import Unit, units_of

CONTEXT, QUESTION, OTHER = range(3)
CLASSES = ("context", "question", "other")
CONTEXT_FROM = 0.5
MAX_TEXT_CHARACTERS = 6_000  # read of one text
MAX_TEXTS = 24  # read of one request, the last ones
_MAX_CHARACTERS = 20_000  # read of one request
_NGRAMS = (2, 3, 4, 5)
_QUESTION_MARKS = ("?", "？", "؟")
_CLOSING = "\"'”’)]»」 "
_QUOTES = tuple("\"“«„「'")
_PAIRED = frozenset(
    [
        "mark",
        "sentence_mark",
        "before_mark",
        "after_mark",
        "last_mark",
        "no_mark",
        "first",
        "last",
        "only",
        "first_part",
        "last_part",
        "only_part",
        "stop",
        "digit",
        "sentence_first",
        "sentence_last",
        "long",
        "colon",
        "new_line",
        "role_last",
        "role_system",
        "role_earlier",
    ]
)


@dataclass(frozen=True, slots=True)
class Said:
    """One text of a request. role: who says it; "last" is the last user message. place, places: its number
    among the texts of its message. picture: where that message's first picture stands.
    """

    text: str
    role: Literal["system", "earlier", "last"] = "last"
    place: int = 0
    places: int = 1
    picture: Literal["before", "after", "none"] = "none"


@dataclass(frozen=True, slots=True)
class ReadUnit:
    """A unit of the text numbered `text`: its characters [start, end) there, and p over CLASSES."""

    text: int
    start: int
    end: int
    probabilities: tuple[float, ...]

    @property
    def is_context(self) -> bool:
        """Whether it is more likely context than not."""
        return self.probabilities[CONTEXT] >= CONTEXT_FROM


def read_units(said: Sequence[Said], reader: Reader) -> list[ReadUnit]:
    """The units of these texts, in order, with what each of them is. What was not read of a long text belongs
    to the unit before it.
    """
    placed, features = unit_features(said, reader.openers)
    rows = reader.units.probabilities(features) if placed else np.zeros((0, len(CLASSES)))
    units: list[ReadUnit] = []
    for (text, start, end), row in zip(placed, rows, strict=True):
        last = units[-1] if units else None
        if last is not None and last.text == text and said[text].text[last.end : start].strip():
            units[-1] = replace(last, end=last.end + len(said[text].text[last.end : start].rstrip()))
        units.append(ReadUnit(text, start, end, tuple(row.tolist())))
    return units


def unit_features(
    said: Sequence[Said], openers: frozenset[str]
) -> tuple[list[tuple[int, int, int]], Features]:
    """Where the units are (text, start, end), and a row of features for each. openers: as in `units_of`."""
    placed: list[tuple[int, int, int]] = []
    joined: list[str] = []
    units: list[Unit] = []  # places in the joined text
    flags: list[list[str]] = []
    at = 0
    asked = any(
        mark in text.text for text in said[-MAX_TEXTS:] if text.role == "last" for mark in _QUESTION_MARKS
    )
    for number in range(max(len(said) - MAX_TEXTS, 0), len(said)):
        for begin, excerpt in _excerpts(said[number].text, _MAX_CHARACTERS - at):
            found = units_of(excerpt, openers)
            sentences = units[-1].sentence + 1 if units else 0
            placed.extend((number, begin + unit.start, begin + unit.end) for unit in found)
            flags.extend(_flags(excerpt, found, said[number], asked=asked))
            units.extend(Unit(at + u.start, at + u.end, sentences + u.sentence) for u in found)
            joined.append(excerpt)
            at += len(excerpt)
    text = "".join(joined)
    return placed, _features(text, units, flags)


def _excerpts(text: str, room: int) -> list[tuple[int, str]]:
    """What is read of a text: its start and its end, or all of it, with where each begins."""
    size = min(MAX_TEXT_CHARACTERS, max(room, 0))
    if len(text) <= size:
        return [(0, text)]
    return [(0, text[: size // 2]), (len(text) - size // 2, text[len(text) - size // 2 :])]


def _features(text: str, units: Sequence[Unit], flags: Sequence[Sequence[str]]) -> Features:
    count = len(units)
    if not count:
        none = np.zeros(0, np.int64)
        return Features(none, none, np.zeros(0, np.float32), 0)
    hashes = hashed(text)
    group = np.full(len(text), -1, np.int64)
    for number, unit in enumerate(units):
        group[unit.start : unit.end] = number
    parts = [
        (rows, buckets(ngrams, 10 + length), 0.5)
        for length in _NGRAMS
        for rows, ngrams in [hashes.ngrams(length, group)]
    ]
    return collect([*parts, *_word_parts(text, hashes, group, units), *_flag_parts(flags)], count)


def _word_parts(
    text: str, hashes: HashedText, group: Indices, units: Sequence[Unit]
) -> list[tuple[Indices, Indices, float]]:
    """Words of the unit, of its sentence, at its ends and at the ends of its neighbours."""
    starts, ends = words_of(text)
    starts, ends = starts[group[starts] >= 0], ends[group[starts] >= 0]
    rows, words = group[starts], hashes.hashes(starts, ends)
    pairs = rows[:-1] == rows[1:]
    bigrams = hashes.hashes(starts[:-1][pairs], ends[1:][pairs])
    first = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
    last = np.concatenate((first[1:] - 1, [len(rows) - 1]))
    second = np.minimum(first + 1, last)
    before, after = rows[first][1:], rows[first][:-1]
    openings = hashes.hashes(starts[first], ends[second])
    parts = [
        (rows, buckets(words, 20), 0.6),
        (rows[:-1][pairs], buckets(bigrams, 21), 0.4),
        (rows[first], buckets(words[first], 30), 0.5),
        (rows[first], buckets(words[last], 31), 0.5),
        (rows[first], buckets(openings, 32), 0.5),
        (before, buckets(words[first][:-1], 33), 0.4),
        (before, buckets(words[last][:-1], 34), 0.4),
        (after, buckets(words[first][1:], 35), 0.4),
        (after, buckets(words[last][1:], 36), 0.4),
        (after, buckets(openings[1:], 37), 0.4),
    ]
    return [*parts, *_sentence_parts(rows, words, units)]


def _sentence_parts(
    rows: Indices, words: NDArray[np.uint64], units: Sequence[Unit]
) -> list[tuple[Indices, Indices, float]]:
    """The words of each unit's sentence."""
    sentence = np.array([unit.sentence for unit in units], np.int64)
    sizes = np.bincount(sentence)
    first_unit = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    of_word = sentence[rows]
    repeated = np.repeat(np.arange(len(rows)), sizes[of_word])
    within = np.arange(len(repeated)) - np.repeat(np.cumsum(sizes[of_word]) - sizes[of_word], sizes[of_word])
    return [(first_unit[of_word[repeated]] + within, buckets(words[repeated], 40), 0.6)]


def _flag_parts(flags: Sequence[Sequence[str]]) -> list[tuple[Indices, Indices, float]]:
    single = [flag_buckets(names) for names in flags]
    pairs = [pair_buckets([name for name in names if name in _PAIRED]) for names in flags]
    return [
        (np.repeat(np.arange(len(flags)), [len(one) for one in many]), np.concatenate(many), weight)
        for many, weight in ((single, 1.5), (pairs, 1.5))
    ]


def _flags(text: str, units: Sequence[Unit], said: Said, *, asked: bool) -> list[list[str]]:
    """What is to be seen of each unit besides its words."""
    marks = [_asks(text, unit) for unit in units]
    last_mark = max((number for number, mark in enumerate(marks) if mark), default=-1)
    by_sentence = {unit.sentence: mark for unit, mark in zip(units, marks, strict=True)}
    common = _place_flags(text, units, said, asked=asked)
    flags: list[list[str]] = []
    in_quote = False
    for number, unit in enumerate(units):
        own = text[unit.start : unit.end]
        before = units[number - 1] if number else None
        after = units[number + 1] if number + 1 < len(units) else None
        seen = {
            "mark": marks[number],
            "sentence_mark": by_sentence[unit.sentence],
            "before_mark": 0 <= number < last_mark,
            "after_mark": 0 <= last_mark < number,
            "last_mark": number == last_mark,
            "first": before is None,
            "last": after is None,
            "sentence_first": before is None or before.sentence != unit.sentence,
            "sentence_last": after is None or after.sentence != unit.sentence,
            "new_line": before is not None and "\n" in text[before.end : unit.start],
            "line_end": after is not None and "\n" in text[unit.end : after.start],
            "blank_line": before is not None and text.count("\n", before.end, unit.start) > 1,
            "after_colon": before is not None and text[before.end - 1] in ":：",
            "quote": own.startswith(_QUOTES),
            "in_quote": in_quote,
            "bracket": own.startswith(("(", "[", "{")),
            "stop": own.endswith((".", "。", "।")),
            "exclaims": own.endswith(("!", "！")),
            "comma": own.endswith((",", "，", "、", "،", ";", "；")),
            "colon": own.endswith((":", "：")),
            "digit": any(character.isdigit() for character in own),
            "lower": own[0].islower(),
            "upper": own.isupper(),
            "long": len(own) > 60,
            "very_long": len(own) > 150,
            "short": len(own) < 12,
            "braces": "{" in own,
        }
        names = [name for name, value in seen.items() if value]
        flags.append([*common, *names, *(f"{said.role}/{name}" for name in names)])
        in_quote ^= own.count('"') % 2 == 1
    return flags


def _place_flags(text: str, units: Sequence[Unit], said: Said, *, asked: bool) -> list[str]:
    """What is the same for all units of a text."""
    seen = {
        f"role_{said.role}": True,
        f"picture_{said.picture}": True,
        "only_part": said.places == 1,
        "first_part": said.places > 1 and said.place == 0,
        "last_part": said.places > 1 and said.place == said.places - 1,
        "no_mark": not asked,
        "only": len(units) == 1,
        "many": len(units) > 8,
        "very_many": len(units) > 20,
        "one_line": "\n" not in text.strip(),
    }
    return [name for name, value in seen.items() if value]


def _asks(text: str, unit: Unit) -> bool:
    return text[unit.start : unit.end].rstrip(_CLOSING).endswith(_QUESTION_MARKS)
